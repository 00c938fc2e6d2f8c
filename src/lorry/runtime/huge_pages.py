"""Memory in huge pages: a fork copies the table of its parent's pages, which has 512 times fewer entries then.

With torch imported a fork takes 1 ms instead of 3.5, with an array of 5 GB 9 instead of 74 (docs/cold-starts.md).
glibc's own switch for it (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`) needs /sys, which a sandbox has not, and does
nothing for Python's objects. So the kernel is asked for each 2 MiB, at a time when nobody
waits and nothing is shared.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator

SIZE = 2 << 20
"""Bytes, where a page has 4 KiB."""
COLLAPSE = 25
"""MADV_COLLAPSE of madvise(2), Linux 6.1."""
libc = ctypes.CDLL(None)


def candidates(maps: str = "/proc/self/maps") -> Iterator[int]:
    """Addresses of whole huge pages in this process's own memory, files and stacks excepted."""
    if resource.getpagesize() != 4096:
        return
    with open(maps) as file:
        lines = [line.split() for line in file]
    for span, mode, _offset, _device, inode, *name in lines:
        if mode == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            begin, end = (int(part, 16) for part in span.split("-"))
            yield from range(-(-begin // SIZE) * SIZE, end // SIZE * SIZE, SIZE)


def collapse(address: int) -> bool:
    """Make these bytes one huge page: 2 to 6 ms. False where it cannot be: nothing was ever written there, or
    the kernel is older."""
    return bool(libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), COLLAPSE) == 0)
