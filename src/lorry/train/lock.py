"""Locks of a run's folder: one for as long as a process trains in it, one for the moments in which files move."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lorry.errors import AlreadyExistsError, ResourceError

PATIENCE = 15.0
"""Seconds for which others may move files. A commit takes milliseconds, a collection seldom a second: whoever holds
the lock for longer is stopped, or waits for a disk that does not answer."""
POLL = 0.005

_held: set[Path] = set()
"""By this process: the kernel's lock does not exclude a process from itself."""


class FolderLock:
    """One process per run's folder. A lock of the process, not of a descriptor: the kernel drops it when the process
    dies, even while forks of it, such as a DataLoader's workers, live on."""

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


@contextlib.contextmanager
def locked(path: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """flock(2) on a file. ResourceError names who has it for more than PATIENCE seconds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _wait(descriptor, path, how)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: a fork may have the descriptor too
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: Path, how: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{_holder(descriptor)} has held {path} for {PATIENCE:g} s, in the middle of a commit. Let it go "
                    "on (kill -CONT) or end it (kill -KILL): no checkpoint suffers from either."
                ) from None
            time.sleep(POLL)


def _holder(descriptor: int) -> str:
    """By the kernel's table of locks, whose rows are: number, kind, …, process, major:minor:inode, …"""
    inode = os.fstat(descriptor).st_ino
    with contextlib.suppress(OSError, IndexError, ValueError):
        for row in Path("/proc/locks").read_text().splitlines():
            fields = row.split()
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode:
                state = Path(f"/proc/{fields[4]}/stat").read_text().rpartition(")")[2].split()[0]
                return f"Process {fields[4]}{' (stopped)' if state in 'tT' else ''}"
    return "Another process"
