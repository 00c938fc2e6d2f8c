"""Training without torch: every step draws, and the digest depends on each of them and on their order."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path
from typing import Any

import lorry

app = lorry.App("sums")


def train(steps: int, pause: float, folder: str, track: bool = True) -> dict[str, Any]:
    state = {"digest": "", "sum": 0.0}
    own = random.Random(3)
    random.seed(7)
    run = lorry.run(every=10)
    run.track(own=own, **({"state": state} if track else {}))
    run.restore()
    run.total_steps = steps
    with Path(folder, "attempts").open("a") as file:
        file.write(f"{os.getpid()} {run.attempt} {run.step_number}\n")
    while run.step_number < steps:
        time.sleep(pause)
        drawn = own.random() + random.random()
        state["sum"] += drawn
        state["digest"] = hashlib.sha256(f"{state['digest']}{drawn!r}{run.load('last')!r}".encode()).hexdigest()
        run.save("last", repr(drawn).encode())
        run.step(sum=state["sum"])
    return {**state, "steps": run.step_number}


@app.function(timeout=4.5, resumable=lorry.Resumable(grace=10))
def slowly(steps: int, pause: float, folder: str, track: bool = True) -> dict[str, Any]:
    """About two seconds of each slice are steps: half a second is the exit's, and two are for what nobody knows."""
    return train(steps, pause, folder, track)


@app.function(timeout=60, resumable=lorry.Resumable(grace=10))
def quickly(steps: int, pause: float, folder: str, track: bool = True) -> dict[str, Any]:
    return train(steps, pause, folder, track)


@app.function(timeout=4, resumable=lorry.Resumable(grace=10))
def too_short(folder: str) -> dict[str, Any]:
    return train(3, 5.0, folder)


@app.function()
def not_resumable(folder: str) -> dict[str, Any]:
    return train(3, 0.0, folder)
