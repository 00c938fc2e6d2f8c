"""Training without torch, and everything that can happen to it. Each step leaves a line in the run's folder, so that
those which were done twice can be counted."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import lorry
from lorry.runtime import slice as slices
from lorry.runtime.slice import Slice

EVERY, GRACE, MARK = 10, 2, 25
"""Steps between saves, seconds to end in, and the step at which things happen."""
app = lorry.App("faulty")
out = lorry.Volume.from_name("faults", create_if_missing=True)
policy = lorry.Resumable(every=EVERY, grace=GRACE, keep_every=None)


def advanced(digest: str) -> str:
    """One step: it depends on all before it, and on the generator."""
    return hashlib.sha256(f"{digest}{random.random()!r}".encode()).hexdigest()


def weights(digest: str) -> bytes:
    """A megabyte, and another one after each step."""
    return hashlib.shake_256(digest.encode()).digest(1 << 20)


def undisturbed(steps: int) -> str:
    random.seed(7)
    digest = ""
    for _ in range(steps):
        digest = advanced(digest)
    return digest


def work(steps: int, pause: float, trouble: str = "") -> str:
    warnings.simplefilter("always")
    random.seed(7)
    state = {"digest": ""}
    run = lorry.run()
    run.track(state=state)
    run.restore()
    run.total_steps = steps
    if run.restored:
        assert run.load("weights") == weights(state["digest"]), "a checkpoint is of two steps"
    while run.step_number < steps:
        number = run.step_number + 1
        with (run.folder / "steps").open("a") as file:
            file.write(f"{number} {os.getpid()}\n")
        time.sleep(pause)
        if trouble.startswith("always") or (number == MARK and (run.attempt == 1 or trouble == "deadlock")):
            happen(trouble.removeprefix("always "), steps, pause, run.folder)
        state["digest"] = advanced(state["digest"])
        run.save("weights", weights(state["digest"]))
        loss = float("nan") if trouble == "nan" and number >= MARK else 1 / number
        run.step(loss=loss, sample="." * 500)  # several rows are a page: a full disk is felt at once
    return state["digest"]


def happen(trouble: str, steps: int, pause: float, folder: Path) -> None:
    """At a moment at which no save is under way: what is lost is known, and no old checkpoint goes and makes room."""
    for thread in threading.enumerate():
        if thread.name == "lorry-checkpoint":
            thread.join()
    if trouble == "slow":
        time.sleep(3600)
    elif trouble == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    elif trouble == "memory":
        print(len(os.urandom(1 << 20) * 600))
    elif trouble == "twin":
        twin(steps, pause)
    elif trouble == "asked":
        mine = slices.current
        while mine is not None and mine.wanted is None:
            time.sleep(0.01)
    elif trouble.startswith("full"):
        until_the_disk_is_full(folder)
        if trouble == "full for a while":
            train_on_when_there_is_room(folder)


def has_room(folder: Path) -> bool:
    """For a checkpoint."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize > 1 << 20


def until_the_disk_is_full(folder: Path) -> None:
    (folder / "waits").touch()
    while has_room(folder):
        time.sleep(0.01)


def train_on_when_there_is_room(folder: Path) -> None:
    """Wait for it at the first warning: the third save in a row that fails would end the attempt."""
    shown = warnings.showwarning

    def show(*arguments: Any) -> None:
        shown(*arguments)
        while not has_room(folder):
            time.sleep(0.01)

    warnings.showwarning = show


def twin(steps: int, pause: float) -> None:
    """A second process trains the same run, as a container does that was taken for dead and lives."""
    mine = slices.current
    assert mine is not None
    if not os.fork():
        slices.current = Slice(mine.limit, mine.began, mine.policy)
        try:
            work(steps, pause)
        finally:
            os._exit(0)


@app.function(timeout=4.5, resumable=policy)
def in_slices(steps: int, pause: float) -> str:
    return work(steps, pause)


@app.function(timeout=120, resumable=policy, volumes={"/out": out})
def train(steps: int, pause: float, trouble: str = "") -> str:
    return work(steps, pause, trouble)


@app.function(timeout=600, resumable=policy)
def train_for_long(steps: int, pause: float, trouble: str = "") -> str:
    return work(steps, pause, trouble)


@app.function(timeout=120, resumable=policy, memory=(64, 256))
def with_little_memory(steps: int, pause: float, trouble: str = "") -> str:
    return work(steps, pause, trouble)
