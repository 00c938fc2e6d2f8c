"""What a build says, on its way to the one who waits for it and to the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lorry.images.credentials import redact

MOST_KEPT = 16 << 20
"""Characters on disk: a step that writes without end fills no disk with its log."""


class BuildLog:
    """Every line of a build passes here before anybody sees it. That the file cannot be written ends no build."""

    def __init__(self, path: Path, secrets: Sequence[str], emit: Callable[[str], None]) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._secrets = secrets
        self._emit = emit
        self._room = MOST_KEPT

    def redact(self, line: str) -> str:
        return redact(line, self._secrets)

    def emit(self, line: str) -> None:
        line = self.redact(line)
        self._keep(line)
        self._emit(line)

    def _keep(self, line: str) -> None:
        if self._room <= 0:
            return
        self._room -= len(line) + 1
        with suppress(OSError):
            self._file.write(line + "\n" if self._room > 0 else "(the rest was left out)\n")

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
