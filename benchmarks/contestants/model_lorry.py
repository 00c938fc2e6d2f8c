"""A model that is loaded with `@enter(snap=True)`, in as many containers as asked for, each called often."""

from __future__ import annotations

import os
import threading
from collections import Counter

import turns

import lorry

app = lorry.App("shared-model")
image = lorry.Image.debian_slim().uv_pip_install("torch==2.13.0", "numpy==2.4.6")
WIDTH = 2048
LAYER = WIDTH * WIDTH * 4 >> 20
"""MiB"""

with image.imports():
    import torch


@app.cls(image=image)
class Model:
    mib: int = lorry.parameter(default=0)

    @lorry.enter(snap=True)
    def load(self) -> None:
        layers = [torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(max(1, self.mib // LAYER))]
        self.model = torch.nn.Sequential(*layers).eval()

    @lorry.method()
    def predict(self) -> str:
        with torch.no_grad():
            self.model(torch.ones(1, WIDTH))
        return os.environ["LORRY_CONTAINER_ID"]


def serve_model(mib: int, count: int, requests: int, measured: object) -> dict[str, object]:
    """`requests` to each of `count` containers, all alive at the same time; then `measured()`."""
    handle = Model.with_options(min_containers=count, max_containers=count)(mib=mib)
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def caller() -> None:
        # A container takes one input at a time: as many callers as containers keep all of them at work.
        while len(seen) < count or min(seen.values()) < requests:
            name = handle.predict.remote()
            with lock:
                seen[name] += 1

    callers = [threading.Thread(target=caller) for _ in range(count)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    return {"containers": len(seen), "requests": min(seen.values()), "value": measured()}  # type: ignore[operator]


def pss_below(pid: int, without: set[int]) -> float:
    """MiB of all processes below `pid`: shared pages count once in all (proc(5), smaps_rollup)."""
    total, below = 0, [pid]
    while below:
        current = below.pop()
        try:
            tasks = os.listdir(f"/proc/{current}/task")
            for task in tasks:
                with open(f"/proc/{current}/task/{task}/children") as file:
                    below += map(int, file.read().split())
            if current not in without:
                with open(f"/proc/{current}/smaps_rollup") as file:
                    total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total / 1024


def ready(mib: int) -> dict[str, object]:
    """A server, the image and the model's template are there. The first container may have started without it, and is
    gone: it would share nothing."""
    for _ in range(2):
        with app.run():
            Model(mib=mib).predict.remote()
    return {}


def shared(mib: int, count: int, requests: int, keeper: int, worker: int) -> dict[str, object]:
    with app.run():
        return serve_model(mib, count, requests, lambda: pss_below(keeper, {keeper, worker}))


def main() -> None:
    turns.serve({"ready": ready, "shared": shared})


if __name__ == "__main__":
    main()
