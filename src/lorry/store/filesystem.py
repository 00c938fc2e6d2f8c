"""Which file systems can hold the state: SQLite's write-ahead log needs real locks and shared memory."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

from lorry.errors import InvalidError

NETWORK_FILESYSTEMS = {
    0x6969: "nfs",
    0x517B: "smb",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x65735546: "fuse",
}
"""`f_type` of statfs(2) → name, from linux/magic.h."""


def refuse_network_filesystem(path: Path, kind_of: Callable[[Path], int] | None = None) -> None:
    """InvalidError if `path`, or where it would be made, lies on nfs, cifs or fuse.

    `kind_of` gives the `f_type` of a folder that exists (a test hands in its own).
    """
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    kind = (kind_of or filesystem_magic)(folder)
    if kind in NETWORK_FILESYSTEMS:
        raise InvalidError(
            f"{path} is on a {NETWORK_FILESYSTEMS[kind]} file system, where a database can be damaged "
            f"without a word. Set LORRY_STATE_DIR to a folder on a local disk."
        )


def filesystem_magic(folder: Path) -> int:
    """`f_type` of statfs(2). 0, which refuses nothing, where the call has another shape (macOS)."""
    if not sys.platform.startswith("linux"):
        return 0
    # struct statfs starts with f_type, a long; 256 bytes are twice its size on any Linux.
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(folder), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF
