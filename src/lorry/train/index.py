"""Where each line of a file begins, found once and kept: 8 bytes per line, mapped afterwards.

The index of one version of a file (path, size, times of change) is a file of its own in the cache folder: the offset
of every line, the size of the data, and the sha256 of the data, which is computed on the way and says later, exactly,
whether data is still what it was. Numbers are 64 bits, in the order of the machine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import struct
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from lorry.errors import InvalidError, ResourceError
from lorry.storage.atomic import full_disk_named, make_folder, sync_folder, temporary_name
from lorry.train.permutation import numpy_if_there
from lorry.train.sources import Source, Version, cache_folder

BLOCK = 4 << 20
"""Bytes read at a time: all the memory that indexing takes, times three."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NEWLINE, RETURN = 10, 13
NUMBER = struct.Struct("=Q")
DIGEST = 32
LEFT_OVER = 3600.0
"""Seconds after which a half-written index belongs to a process that died."""

NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

Finder = Callable[[memoryview, int, int], tuple[Any, int]]
Reader = Callable[[int, memoryview], int]
"""(offset, buffer) → bytes read into it."""


class LineIndex:
    """Spans of the lines of one version of a file. A line is a sample without its line end; lines with nothing before
    it are none."""

    __slots__ = ("count", "sha256", "starts")

    def __init__(self, mapped: mmap.mmap) -> None:
        self.starts = memoryview(mapped)[:-DIGEST].cast("Q")
        """The first byte of each line, and the size of the file. A line and its end, and blank lines behind it, reach
        to the start of the next."""
        self.count = len(self.starts) - 1
        self.sha256 = mapped[-DIGEST:].hex()


def open_index(version: Version, source: Source) -> LineIndex:
    """The kept index, or a new one. InvalidError: the file is being written to."""
    place = cache_folder("lines") / f"{version.key}.lines"
    try:
        found = _map(place, version)
        if found is None:
            with full_disk_named(place.parent):
                _keep(place, version, source)
            found = _map(place, version)
    except OSError as e:
        if e.errno not in NO_ENTRY:
            raise
        raise ResourceError(
            f"The index of {version.path} cannot be kept in {place.parent} ({e.strerror}): "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from e
    assert found is not None
    return found


def _map(place: Path, version: Version) -> LineIndex | None:
    """None: not there, or not whole."""
    try:
        with place.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # ValueError: empty
        return None
    length = len(mapped) - DIGEST
    whole = length >= NUMBER.size and length % NUMBER.size == 0
    return LineIndex(mapped) if whole and NUMBER.unpack_from(mapped, length - NUMBER.size)[0] == version.size else None


def _keep(place: Path, version: Version, source: Source) -> None:
    make_folder(place.parent)
    _drop_older(place)
    staged = place.with_name(f"{place.name}.{temporary_name()}")
    try:
        with staged.open("xb") as out:
            write_index(source.read_into, out, _find_with_numpy if numpy_if_there() else _find)
            out.flush()
            os.fsync(out.fileno())
        try:
            source.check()
        except InvalidError:
            raise InvalidError(f"{version.path} changed while it was indexed: start when it is written") from None
        staged.replace(place)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_folder(place.parent)


def _drop_older(place: Path) -> None:
    """Indexes of earlier versions of the same path, and what killed processes left of theirs."""
    path = place.name.partition("-")[0]
    for other in place.parent.glob(f"{path}-*"):
        with contextlib.suppress(FileNotFoundError):  # another process drops them too
            if other.suffix == ".lines" or time.time() - other.stat().st_mtime > LEFT_OVER:
                other.unlink()


# --- finding lines ----------------------------------------------------------------------------------------


def write_index(read: Reader, out: BinaryIO, find: Finder) -> None:
    """The buffer begins with the last byte of the block before, so that the
    byte before a newline is always in sight."""
    digest, kept = hashlib.sha256(), bytearray(1 + BLOCK)
    view = memoryview(kept)
    done = start = 0
    while count := read(done, view[1:]):
        digest.update(view[1 : 1 + count])
        if not done and kept.startswith(BYTE_ORDER_MARK, 1):
            start = len(BYTE_ORDER_MARK)
        starts, start = find(view[: 1 + count], done, start)
        out.write(starts)
        done += count
        kept[0] = kept[count]
    if done - start > 1 or (done - start == 1 and kept[0] != RETURN):
        out.write(NUMBER.pack(start))
    out.write(NUMBER.pack(done))
    out.write(digest.digest())


def _find(view: memoryview, done: int, start: int) -> tuple[Any, int]:
    """Offsets of the lines that end in this block, and the start of the one that does not; `done` bytes came before
    the block, `start` is that of the line that it begins with."""
    block, found = bytes(view), array("Q")
    at = block.find(b"\n", 1)
    while at > 0:
        length = done + at - 1 - start
        if length > 1 or (length == 1 and block[at - 1] != RETURN):
            found.append(start)
        start = done + at
        at = block.find(b"\n", at + 1)
    return found, start


def _find_with_numpy(view: memoryview, done: int, start: int) -> tuple[Any, int]:
    numpy = numpy_if_there()
    block = numpy.frombuffer(view, numpy.uint8)
    ends = numpy.flatnonzero(block[1:] == NEWLINE)
    if not ends.size:
        return b"", start
    starts = numpy.empty_like(ends)
    starts[0], starts[1:] = start - done, ends[:-1] + 1
    lengths = ends - starts
    full = (lengths > 1) | ((lengths == 1) & (block[ends] != RETURN))  # block[ends]: the byte before
    return (starts[full] + done).astype(numpy.uint64).tobytes(), done + int(ends[-1]) + 1
