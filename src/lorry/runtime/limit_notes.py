"""Errors of the system that are a limit of the container: which one, how large, and what to do about it.

The kernel says "Resource temporarily unavailable" and "No space left on device", and Python passes that on.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from contextlib import suppress
from pathlib import Path

PIDS_VARIABLE = "LORRY_PIDS_LIMIT"
SHM = "/dev/shm"  # noqa: S108 - private to each container
STACK = 8 << 20
"""Bytes of a thread's stack, which count as memory where that is limited per process."""
FULL = 1 << 20
"""A file system with less free than this is what "no space left" meant."""


def annotate(problem: BaseException) -> None:
    """Adds a note to the exception, if a limit explains it. Never raises."""
    with suppress(Exception):
        note = _note(problem)
        if note and note not in getattr(problem, "__notes__", ()):
            problem.add_note(note)


def _note(problem: BaseException) -> str:
    if isinstance(problem, MemoryError):
        return _memory()
    if isinstance(problem, RuntimeError) and str(problem) == "can't start new thread":
        return _memory() if _no_room_for(STACK) else _pids()
    if isinstance(problem, BlockingIOError) and problem.errno == errno.EAGAIN and _forked(problem):
        return _pids()
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        return _space()
    return ""


def _no_room_for(size: int) -> bool:
    """Whether so much more passes the limit of this process's memory."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text() if limit != resource.RLIM_INFINITY else ""
    found = re.search(r"VmData:\s+(\d+) kB", status)
    return found is not None and (int(found[1]) << 10) + size > limit


def _memory() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return ""
    return f"The memory limit of this container is {limit >> 20} MiB per process: raise it with memory=(…, limit)"


def _pids() -> str:
    limit = os.environ.get(PIDS_VARIABLE)
    if limit is None:
        return ""
    return (
        f"A container may have {limit} processes and threads, a quarter at most of what this machine can number. "
        "Those that were started before and still live count"
    )


def _forked(problem: BaseException) -> bool:
    """Sockets say the same when they would block: what was being done decides."""
    import traceback

    last = traceback.extract_tb(problem.__traceback__)[-1]
    return "fork" in f"{last.line} {last.name}" or last.name in ("_execute_child", "_launch")


def _space() -> str:
    if _is_full(SHM):
        size = os.statvfs(SHM)
        return (
            f"{SHM} is full. It has {size.f_blocks * size.f_frsize >> 20} MiB: the memory limit of the function, or "
            "half of this machine's memory"
        )
    if _is_full(os.environ.get("TMPDIR", "/tmp")):  # noqa: S108
        return "The disk of this machine that holds /tmp, home and Volumes is full: `lorry df` shows what takes it"
    return ""


def _is_full(path: str) -> bool:
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < FULL
