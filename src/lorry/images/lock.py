"""One builder per environment, across tasks and processes; and none while somebody collects."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

_RETRY = 0.05
"""Seconds between two tries. A thread blocked in flock() could not be cancelled, so the wait is a poll."""


def exclusive(path: Path, on_wait: Callable[[], None]) -> AbstractAsyncContextManager[None]:
    """Holds `path`'s lock; calls `on_wait` once if somebody else holds it. The kernel frees it on kill -9."""
    return _held(path, fcntl.LOCK_EX, on_wait)


def shared(path: Path) -> AbstractAsyncContextManager[None]:
    """Holds it beside others who hold it so, and beside nobody who holds it exclusively."""
    return _held(path, fcntl.LOCK_SH, lambda: None)


@asynccontextmanager
async def _held(path: Path, kind: int, on_wait: Callable[[], None]) -> AsyncIterator[None]:
    descriptor = _open(path)
    try:
        waited = False
        while not _try(descriptor, kind):
            if not waited:
                waited = True
                on_wait()
            await asyncio.sleep(_RETRY)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Holds the lock inside the block if nobody else does, and says whether."""
    descriptor = _open(path)
    try:
        yield _try(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Lock files are never removed: with a removed one, two could hold "the" lock."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
