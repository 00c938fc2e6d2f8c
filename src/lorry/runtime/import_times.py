"""Which package of an import costs what: the time of each outermost import of a name without a dot."""

from __future__ import annotations

import builtins
import sys
import time
from typing import Any

MOST = 5
SHORTEST = 0.05
"""Seconds. Below that a package is not named."""


class ImportTimes:
    """`with ImportTimes() as times: …`; then `times.slowest()`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._depth = 0

    def __enter__(self) -> ImportTimes:
        self._import = builtins.__import__
        builtins.__import__ = self._timed
        return self

    def __exit__(self, *_error: object) -> None:
        builtins.__import__ = self._import

    def slowest(self) -> list[tuple[str, float]]:
        """At most MOST pairs (package, seconds), the slowest first."""
        ordered = sorted(self._seconds.items(), key=lambda pair: -pair[1])
        return [(name, seconds) for name, seconds in ordered[:MOST] if seconds >= SHORTEST]

    def _timed(self, name: str, *rest: Any, **more: Any) -> Any:
        """Imports inside of imports count for the outer one: numpy for the torch that imports it."""
        top = name.partition(".")[0]
        if self._depth or not top or name in sys.modules:
            return self._import(name, *rest, **more)
        self._depth += 1
        began = time.perf_counter()
        try:
            return self._import(name, *rest, **more)
        finally:
            self._depth -= 1
            self._seconds[top] = self._seconds.get(top, 0.0) + time.perf_counter() - began
