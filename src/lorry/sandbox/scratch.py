"""How much a container has on disk in its home and /tmp: what `ephemeral_disk` limits."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from lorry.sandbox.procfs import family
from lorry.sandbox.records import files_of

FOLDERS = ("home", "tmp")
TIMEOUT = 60.0
"""Seconds that one look may take; a tree of millions of files takes some."""


def scratch_mib(folder: str, pid: int) -> int:
    """MiB, rounded down; blocking. Counted are blocks, so that a sparse file weighs what it takes, and each hard link
    once. Files that were deleted while a process has them open take space too, and are asked of the processes.

    It is `du` that walks: trees of any depth, no links followed, and without the interpreter's lock. What a program
    makes unreadable for an ordinary user's server, it does not see."""
    return (_named(folder) + sum(_deleted(folder, member.pid) for member in family(pid))) >> 20


def _named(folder: str) -> int:
    command, where = ["du", "-skx", *FOLDERS], files_of(folder)
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    sizes = (line.partition("\t")[0] for line in done.stdout.splitlines())
    return sum(int(size) for size in sizes if size.isdigit()) << 10


def _deleted(folder: str, pid: int) -> int:
    """Bytes of files on this disk that only this process's descriptors hold."""
    found: dict[int, int] = {}
    with suppress(OSError):
        device = os.stat(folder).st_dev
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                info = os.stat(f"/proc/{pid}/fd/{name}")
                if info.st_nlink == 0 and info.st_dev == device:
                    found[info.st_ino] = info.st_blocks * 512
    return sum(found.values())
