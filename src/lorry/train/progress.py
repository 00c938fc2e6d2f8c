"""How far an attempt is, in a file for whoever watches it: the server, or a person."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

SECONDS = 1.0
"""Between two writes in the same phase."""

Phase = Literal["restoring", "waiting", "training", "saving"]
"""waiting: for the first step, or for the program to end after the last. Only "training" is expected to move on."""


class ProgressFile:
    """Replaced as a whole, so that a reader sees the old one or the new one. What a crash of the machine loses of it is
    of no use afterwards."""

    def __init__(self, folder: Path) -> None:
        self._path, self._temporary = folder / "progress.json", folder / ".progress.json"
        self._written = float("-inf")
        self._phase: Phase | None = None

    def due(self, phase: Phase, now: float) -> bool:
        return phase != self._phase or now - self._written >= SECONDS

    def write(self, phase: Phase, now: float, values: dict[str, Any]) -> None:
        """A disk that is full stops no training because of this: whoever reads finds an old `at`."""
        self._phase, self._written = phase, now
        with contextlib.suppress(OSError):
            self._temporary.write_text(json.dumps({"at": now, "phase": phase, **values}))
            self._temporary.replace(self._path)
