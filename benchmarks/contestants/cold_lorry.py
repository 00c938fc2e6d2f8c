"""Lorry from zero: no container of the function is alive when it is called. Asked through the public SDK."""

from __future__ import annotations

import time

import turns

import lorry
from lorry.sdk.channel import Channel

app = lorry.App("cold-starts")
image = lorry.Image.debian_slim().uv_pip_install("torch==2.13.0", "numpy==2.4.6")
IDLE = 0.05
"""Seconds until a container goes: at once."""
PATIENCE = 60.0

with image.imports():  # here, nothing of it is needed
    import numpy
    import torch


@app.function(image=image, scaledown_window=IDLE)
def add() -> float:
    return float(torch.ones(8).sum())


@app.cls(image=image, scaledown_window=IDLE)
class Large:
    """A template of `mib` MiB beside torch's own 200."""

    mib: int = lorry.parameter(default=0)

    @lorry.enter(snap=True)
    def load(self) -> None:
        self.ballast = numpy.ones(self.mib << 20, dtype=numpy.uint8)

    @lorry.method()
    def add(self) -> float:
        return float(torch.ones(8).sum()) + float(self.ballast[:1].sum() if self.mib else 0) * 0


def containers() -> int:
    channel = Channel()
    try:
        return len(channel.ask("container_list", {"app_id": app.app_id})["containers"])
    finally:
        channel.close()


def wait_for_zero() -> None:
    deadline = time.monotonic() + PATIENCE
    while containers():
        assert time.monotonic() < deadline, "a container does not go"
        time.sleep(0.01)


def timed(call: object, n: int) -> dict[str, object]:
    """Milliseconds of n calls, each from zero."""
    samples = []
    for _ in range(n):
        wait_for_zero()
        began = turns.now()
        assert call() == 8.0  # type: ignore[operator]
        samples.append((turns.now() - began) * 1e3)
    return {"samples": samples}


def warm(n: int) -> dict[str, object]:
    add.remote()
    return timed(add.remote, n)


def nothing(turn: int) -> dict[str, object]:
    """A variant that was never called: another environment, so no template of it is there."""
    return timed(add.with_options(env={"NEVER_BEFORE": f"{turn} {time.time()}"}).remote, 1)


def large(mib: int, n: int) -> dict[str, object]:
    call = Large(mib=mib).add.remote
    call()
    return timed(call, n)


def main() -> None:
    with app.run():
        add.remote()  # the image is built and torch's files are in the page cache
        wait_for_zero()
        turns.serve({"warm": warm, "nothing": nothing, "large": large})


if __name__ == "__main__":
    main()
