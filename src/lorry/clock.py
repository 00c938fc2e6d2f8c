"""Time as an argument: pure code takes `now`, the shell owns one `Clock`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds that never jump: durations, leases, deadlines."""
        ...

    def wall(self) -> float:
        """Unix seconds, for people and for rows on disk. It can jump; nothing expires by it in memory."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


class ManualClock:
    """A clock that tests move by hand."""

    def __init__(self, start: float = 1_000.0) -> None:
        self.now = start
        self.offset = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.offset

    def advance(self, seconds: float) -> None:
        self.now += seconds
