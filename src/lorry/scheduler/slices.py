"""Runs (inputs of a resumable function), attempt by attempt: which one was in vain, and when the next one comes.

An attempt in which a checkpoint was committed was worth it, however it ended. One that the platform itself cut short
does not count. So many others in a row, and the run ends: a run that makes progress may take a thousand attempts, one
that makes none does not hold a GPU for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorry.model.records import Status
from lorry.scheduler.queue import Queue

MOST_FRUITLESS = 3
ENDS_WITHIN = 10.0
"""Seconds before the end of a slice, or a tenth of it if that is more, in which its successor is made ready. Longer:
a container idles. Shorter: an import of torch is not through."""
_ENDS = {Status.CONTINUE: Status.TIMEOUT, Status.TIMEOUT: Status.TIMEOUT, Status.LOST: Status.LOST}
_HINT = "After each step run.step() saves when it is time (run = lorry.run(), then run.track(…) and run.restore())"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How an attempt ended."""

    status: Status
    """CONTINUE, ERROR, TIMEOUT, or LOST: its container died."""
    committed: bool
    """It moved the run's newest checkpoint."""
    excused: bool = False
    """The platform wanted its container, for reasons that are not the run's."""
    reason: str = ""
    """Of a death."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    fruitless: int
    """Attempts in a row without a new checkpoint, this one included."""
    delay: float | None
    """Seconds to the next attempt; None: there is none."""
    status: Status
    """How the run ends then. ERROR: with what its code raised."""
    text: str


def after(fruitless: int, attempt: Attempt, timeout: float) -> Next:
    """`fruitless`: attempts in vain before this one. `timeout`: the length of a slice in seconds."""
    if attempt.committed:
        fruitless = 0
    elif not attempt.excused:
        fruitless += 1
    over = fruitless >= MOST_FRUITLESS and not attempt.excused
    pause = float(max(1, fruitless)) if attempt.status is Status.ERROR else 0.0
    return Next(
        fruitless=fruitless,
        delay=None if over else pause,
        status=_ENDS.get(attempt.status, attempt.status),
        text=_story(attempt, timeout) if over else "",
    )


def _story(attempt: Attempt, timeout: float) -> str:
    times = f"{MOST_FRUITLESS} attempts in a row ended without a new checkpoint"
    if attempt.status is Status.LOST:
        return f"{attempt.reason}. {times}, so the run is not tried again"
    if attempt.status is Status.CONTINUE:
        return f"{times}, each at the end of its slice (timeout={timeout:g} s). Raise timeout=. {_HINT}"
    return (
        f"{times}; the last one ran past its slice (timeout={timeout:g} s) without reaching a point at which it could "
        f"end. {_HINT}. One step and one save must fit into timeout="
    )


def ending_soon(queue: Queue, now: float) -> int:
    """Runs whose slice is about to end: so many containers are wanted beside those that work."""
    window = max(ENDS_WITHIN, queue.timeout / 10)
    begun = (lease.started for slot in queue.slots.values() for lease in slot.leases.values() if lease.work.indices)
    return sum(started + queue.timeout - now <= window for started in begun)
