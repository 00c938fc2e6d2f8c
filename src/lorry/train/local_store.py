"""Checkpoints in a folder that needs nobody: the newest one, and the newest attempt, are files in it too.

HEAD   the newest committed checkpoint
TOKEN  the newest attempt
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from lorry.errors import CorruptCheckpointError, StaleAttemptError
from lorry.train import files
from lorry.train.folder_store import FolderStore
from lorry.train.manifest import Head
from lorry.wire.codec import from_json, to_json

LOST_TOKENS = 1 << 20
"""When TOKEN is lost, the next is so far above the newest known one that no attempt alive can have the same."""


class FileHeads:
    """`Heads` in two files, each with its digest."""

    def __init__(self, folder: Path, known: Callable[[], list[int]]) -> None:
        """`known`: tokens of the checkpoints that are there, for when TOKEN is lost."""
        self._folder, self._known = folder, known
        self._head, self._newest, self._bad = folder / "HEAD", folder / "TOKEN", folder / "bad"

    def begin(self) -> int:
        token = self._last() + 1
        self._replace(self._newest, str(token))
        return token

    def _last(self) -> int:
        with contextlib.suppress(CorruptCheckpointError):
            if self._newest.exists():
                return self._token()
        known = self._known()
        with contextlib.suppress(CorruptCheckpointError):
            head = self.head()
            known += [head.token] if head else []
        return max(known, default=0) + LOST_TOKENS if known or any(self._bad.iterdir()) else 0

    def _token(self) -> int:
        return int(files.unsealed(self._newest, self._bad))

    def head(self) -> Head | None:
        return from_json(Head, files.unsealed(self._head, self._bad)) if self._head.exists() else None

    def commit(self, head: Head) -> None:
        newest = self._token()
        if head.token != newest:
            raise StaleAttemptError(
                f"Attempt {head.token} of the run in {self._folder} cannot save any more: attempt {newest} has begun."
            )
        self._replace(self._head, to_json(head))

    def _replace(self, path: Path, line: str) -> None:
        files.replace(path, files.sealed(line), path.with_suffix(".new"))


class LocalStore(FolderStore):
    def __init__(self, folder: Path, wall: Callable[[], float] = time.time) -> None:
        super().__init__(folder, FileHeads(folder, self.tokens), wall)
