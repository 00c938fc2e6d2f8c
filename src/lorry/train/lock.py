"""One process per run's folder. A lock of the process, not of a descriptor: the kernel drops it when the process dies,
even while forks of it, such as a DataLoader's workers, live on."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from lorry.errors import AlreadyExistsError

_held: set[Path] = set()
"""By this process: the kernel's lock does not exclude a process from itself."""


class FolderLock:
    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._descriptor = -1

    def acquire(self) -> None:
        """AlreadyExistsError if a living process, or this one, has it."""
        if self._folder in _held:
            raise AlreadyExistsError(
                f"This program has a run in {self._folder} already: finish() that one first, or give a folder="
            )
        descriptor = os.open(self._folder / "running", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            owner = os.read(descriptor, 20).decode(errors="replace") or "?"
            os.close(descriptor)
            raise AlreadyExistsError(
                f"Process {owner} is training in {self._folder}: two would undo each other's work. Stop it first, or "
                "give this one a folder= of its own"
            ) from e
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor
        _held.add(self._folder)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            _held.discard(self._folder)
