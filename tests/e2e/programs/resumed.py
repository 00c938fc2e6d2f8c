"""Runs without training: functions that speak to their runner as `lorry.run()` does."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import lorry
from lorry.errors import SliceTooShortError, YieldSlice
from lorry.runtime import slice as slices

app = lorry.App("resumed")
other = lorry.App("resumed-other")
quick = lorry.Resumable(grace=1, keep_every=None)


def attempt_of(folder: str) -> int:
    """Counts them, each with its process."""
    attempts = Path(folder, "attempts")
    with attempts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(attempts.read_text().splitlines())


def safe_point() -> None:
    """End here if somebody wants that."""
    current = slices.current
    assert current is not None
    if current.wanted is not None:
        current.yielded = current.wanted
        raise YieldSlice(current.wanted)


def restored() -> slices.Slice:
    assert slices.current is not None
    slices.current.active = True
    return slices.current


@app.function(timeout=60, resumable=True)
def three_slices(folder: str) -> int:
    """Its attempts, and it swallows what ends them."""
    attempt = attempt_of(folder)
    current = restored()
    try:
        if attempt < 3:
            current.wanted = "slice"
            safe_point()
    except BaseException:
        return -1
    return attempt


@app.function(timeout=60, resumable=True)
def fails(folder: str) -> None:
    raise ValueError(f"attempt {attempt_of(folder)}")


@app.function(timeout=60, resumable=True)
def dies(folder: str) -> None:
    attempt_of(folder)
    os.kill(os.getpid(), signal.SIGKILL)


@app.function(timeout=60, resumable=True)
def too_short(folder: str) -> None:
    attempt_of(folder)
    raise SliceTooShortError("a slice of 60 s cannot make one step and save it")


@app.function(timeout=0.3, startup_timeout=30, resumable=quick)
def never_yields(folder: str) -> None:
    attempt_of(folder)
    time.sleep(60)


@app.function(timeout=0.5, startup_timeout=30, resumable=quick)
def steps(folder: str, slowness: float, wanted: int) -> int:
    """Yields when it is asked to, and returns its attempt number with the last one."""
    attempt = attempt_of(folder)
    current = restored()
    while attempt < wanted:
        time.sleep(0.01)
        if current.wanted is not None:
            time.sleep(slowness)
            Path(folder, f"saved-{attempt}").write_text(current.wanted)
            safe_point()
    return attempt


@app.function(timeout=60, resumable=quick)
def patient(folder: str, slowness: float, wanted: int) -> int:
    """The same with a long slice."""
    return steps.local(folder, slowness, wanted)


@other.function(timeout=60, resumable=True)
def long(folder: str, slowness: float, wanted: int) -> int:
    """The same in another app, with all the time to save."""
    return steps.local(folder, slowness, wanted)


@app.function(timeout=60, resumable=True)
def deaf_for_long(folder: str, wanted: int) -> int:
    """Whoever asks waits."""
    return deaf.local(folder, wanted)


@app.function(timeout=60, resumable=lorry.Resumable(grace=0.3))
def deaf(folder: str, wanted: int) -> int:
    """Reaches no safe point, whoever asks."""
    attempt = attempt_of(folder)
    restored()
    while attempt < wanted:
        time.sleep(0.01)
    return attempt
