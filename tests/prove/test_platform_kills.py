"""Plain PyTorch in short slices on the platform. Its containers are killed at random moments and at named points, and
so is the server's worker: the final weights are those of a training that nobody touched.

`make prove` runs it; the dated result belongs in docs/proofs.md.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import torch_python as torch_python
from run_orders import run_of
from server_asking import ask
from server_home import ServerHome, processes_of

import lorry

pytestmark = pytest.mark.prove
PROGRAM = Path(__file__).parent / "programs" / "torch_in_slices.py"
PAUSE = 0.03
IN_VAIN = 2
"""Kills in a row without a checkpoint between them: a third ends a run, and rightly so."""


class Driver:
    """A client that has torch, and what happens to its trainings."""

    def __init__(self, python: Path, home: ServerHome) -> None:
        ask("server_status")  # a server of this environment: the other has only what training needs
        environ = {**os.environ, "PYTHONPATH": str(Path(lorry.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        self._client = subprocess.Popen(
            [python, PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True
        )
        self._home = home
        self.count: Counter[str] = Counter()

    def start(self, workers: int, **options: Any) -> str:
        """The run's id."""
        assert self._client.stdin is not None
        self._client.stdin.write(json.dumps({"workers": workers, "pause": PAUSE, "options": options}) + "\n")
        self._client.stdin.flush()
        return str(run_of(self._said("call"))["run_id"])

    def digest(self, run: str) -> str:
        found = self._said("digest")
        shown = ask("run_show", run=run)
        self.count.update(trainings=1, attempts=shown["attempts"])
        self.count["slices that were over"] += shown["slices"]
        return found

    def _said(self, name: str) -> str:
        assert self._client.stdout is not None
        line = self._client.stdout.readline()
        assert line, "the client has ended"
        return str(json.loads(line)[name])

    def is_over_within(self, seconds: float) -> bool:
        return bool(select.select([self._client.stdout], [], [], seconds)[0])

    def kill_now_and_then(self, run: str, moments: random.Random) -> None:
        """Any process of its container, those that load data included, and at times the server's worker."""
        head, in_vain = None, 0
        while not self.is_over_within(moments.uniform(0, 2)):
            shown = ask("run_show", run=run)
            if shown["head_step"] != head:
                head, in_vain = shown["head_step"], 0
            if moments.random() < 0.15:
                os.kill(self._home.worker_pid(), signal.SIGKILL)
                self.count["kills of the worker"] += 1
            elif in_vain < IN_VAIN and self._kill_container(shown, moments):
                in_vain += 1

    def _kill_container(self, shown: dict[str, Any], moments: random.Random) -> bool:
        for attempt in shown["attempt_rows"]:
            processes = processes_of(self._home.state / "containers" / attempt["container_id"])
            if attempt["ended"] is None and processes:
                os.kill(moments.choice(processes), signal.SIGKILL)
                self.count["kills"] += 1
                return True
        return False

    def close(self) -> None:
        assert self._client.stdin is not None
        self._client.stdin.close()
        self._client.wait(60)
        assert self._client.stdout is not None
        self._client.stdout.close()


@pytest.fixture
def driver(torch_python: Path, own_server: ServerHome) -> Iterator[Driver]:
    driver = Driver(torch_python, own_server)
    yield driver
    driver.close()


@pytest.fixture
def undisturbed(driver: Driver) -> str:
    """In one slice. It is the same with workers that load data."""
    digests = {driver.digest(driver.start(workers, timeout=600)) for workers in (0, 2)}
    assert len(digests) == 1, "training is not deterministic by itself"
    assert driver.count["attempts"] == 2
    driver.count.clear()
    return digests.pop()


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str, Driver], None]:
    began = time.monotonic()

    def report(what: str, driver: Driver) -> None:
        numbers = ", ".join(f"{count} {name}" for name, count in driver.count.items())
        with capsys.disabled():
            print(f"\n{what}: {numbers}; {time.monotonic() - began:.0f} s; all with the same weights")

    return report


@pytest.mark.parametrize("workers", [0, 2])
def test_kills_at_random_moments(
    driver: Driver, undisturbed: str, workers: int, report: Callable[[str, Driver], None]
) -> None:
    moments = random.Random(f"proof {workers}")
    while driver.count["kills"] < 40:
        run = driver.start(workers)
        driver.kill_now_and_then(run, moments)
        assert driver.digest(run) == undisturbed
    report(f"{workers} workers", driver)


def test_kills_at_named_points(
    driver: Driver, undisturbed: str, own_server: ServerHome, report: Callable[[str, Driver], None]
) -> None:
    """Six in each training, one per attempt; each but the one at the restore comes after a checkpoint."""
    passages = random.Random("points")
    for number in range(7):
        points = {
            "train.staging": passages.randint(60, 200),
            "train.chunk_written": passages.randint(4, 10),
            "train.manifest_written": passages.randint(2, 6),
            "train.head_swap_before": passages.randint(2, 6),
            "train.head_swap_after": passages.randint(1, 6),
            "train.restore": passages.randint(1, 5),
        }
        plan = ",".join(f"{point}:{passage}" for point, passage in points.items())
        run = driver.start(2 * (number % 2), env={"LORRY_FAULT": plan, "LORRY_FAULT_ONCE": f"/out/{number}"})
        assert driver.digest(run) == undisturbed
        volumes = own_server.state / "volumes"
        driver.count.update(point for point in points if any(volumes.glob(f"*/{number}.{point}")))
    assert all(driver.count[point] >= 5 for point in points), driver.count
    report("named points", driver)
