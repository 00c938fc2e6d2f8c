"""Files that are far away: blocks of them are read once, and kept on this machine's disk for all who come later.

A network mount or a FUSE volume answers each read after a while, and what the kernel keeps of it goes with the memory.
So such a file is read in blocks of 8 MiB, and each block becomes a file in the cache folder, with its sha256 behind
it: renamed into place when it is whole, never changed afterwards, removed when others were used more recently. The
folder is shared by threads, processes and attempts. A local file is not kept twice: `MappedFile` reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lorry.errors import InvalidError
from lorry.storage.atomic import make_folder, temporary_name
from lorry.train.sources import OpenFile, Version, cache_folder

BLOCK = 8 << 20
LIMIT = 20 << 30
"""Bytes that the folder keeps at most."""
MAPPED = 192
"""Blocks that a process has open per file: those of a window and the next (order.py), as a rule."""
LOCKS = 16
DIGEST = 32
LEFT_OVER = 3600.0
"""Seconds after which a half-written block belongs to a process that died."""

FAR = {"9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "smb3"}
"""File systems as /proc/self/mountinfo names them; `fuse.sshfs` and the like count as `fuse`."""


def far(path: str | Path) -> bool:
    """Whether it lies on a file system that asks another machine or another program for its bytes."""
    with contextlib.suppress(OSError):
        return _file_system(os.stat(path).st_dev).partition(".")[0] in FAR
    return False


@functools.cache
def _file_system(device: int) -> str:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split(" ", 3)[2] == wanted:
            return kind.split(" ", 1)[0]
    return ""


def folder_for_blocks() -> Path | None:
    """None: it cannot be made, or is as far away as what it would keep."""
    folder = cache_folder("blocks")
    try:
        make_folder(folder)
    except OSError:
        return None
    return None if far(folder) else folder


class FarFile(OpenFile):
    """A file whose blocks are kept in `folder`. It reads without them when that disk is full or not to be written."""

    fetched = 0
    """Bytes that this process has read from afar."""

    def __init__(self, version: Version, folder: Path) -> None:
        super().__init__(version)
        self._folder, self._keeps = folder, True
        self._mapped: dict[int, mmap.mmap] = {}

    def read(self, offset: int, size: int) -> bytes:
        number, start = divmod(offset, BLOCK)
        block = self._block(number)
        if block is None:
            return self._read(offset, size)
        if start + size <= BLOCK:
            return block[start : start + size]
        return block[start:BLOCK] + self.read(offset + BLOCK - start, size - BLOCK + start)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        size = min(len(buffer), self._version.size - offset)
        if size:
            buffer[:size] = self.read(offset, size)
        return size

    def fetch(self, offset: int, size: int) -> None:
        for number in range(offset // BLOCK, -(-(offset + size) // BLOCK)):
            if self._keeps:
                self._block(number)

    def _block(self, number: int) -> mmap.mmap | None:
        """Mapped; None: blocks cannot be kept."""
        block = self._mapped.pop(number, None)
        if block is None and self._keeps:
            try:
                block = self._opened(number)
            except OSError:
                self._keeps = False
        if block is not None:
            self._mapped[number] = block  # the youngest now
            while len(self._mapped) > MAPPED:
                with contextlib.suppress(KeyError, StopIteration, RuntimeError):  # another thread drops too
                    self._mapped.pop(next(iter(self._mapped)))
        return block

    def _opened(self, number: int) -> mmap.mmap:
        place = self._folder / f"{self._version.key}-{number}.block"
        size = min(BLOCK, self._version.size - number * BLOCK)
        block = _whole(place, size)
        if block is None:
            with _alone(self._folder / f"{number % LOCKS}.lock"):  # others want it too: one reads it
                block = _whole(place, size)
                if block is None:
                    data = self._read(number * BLOCK, size)
                    self.check()  # before it is kept under this version's name
                    _keep(place, data)
                    block = _whole(place, size)
        if block is None:
            raise OSError(f"{place} does not keep what is written")
        return block

    def _read(self, offset: int, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            part = os.pread(self._descriptor, size - len(found), offset + len(found))
            if not part:
                raise InvalidError(f"{self._version.path} ends before byte {offset + size}: it was cut short")
            found += part
        FarFile.fetched += size
        return bytes(found)


def _whole(place: Path, size: int) -> mmap.mmap | None:
    """A kept block, looked at as a whole. None: not there, or damaged, and then dropped."""
    try:
        with place.open("rb") as file:
            block = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # ValueError: empty
        return None
    if len(block) == size + DIGEST and hashlib.sha256(memoryview(block)[:size]).digest() == block[size:]:
        with contextlib.suppress(OSError):
            os.utime(place)  # used now
        return block
    place.unlink(missing_ok=True)
    return None


def _keep(place: Path, data: bytes) -> None:
    """Not synced: what a power cut leaves of it does not pass `_whole`."""
    _make_room(place.parent, len(data))
    staged = place.with_name(f"{place.name}.{temporary_name()}")
    try:
        with staged.open("xb") as out:
            out.write(data)
            out.write(hashlib.sha256(data).digest())
        staged.replace(place)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _make_room(folder: Path, size: int) -> None:
    """The least recently used go. Who has one mapped keeps it."""
    kept = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            stat = entry.stat()
            if entry.name.endswith(".block"):
                kept.append((stat.st_mtime, stat.st_size, entry.path))
            elif not entry.name.endswith(".lock") and time.time() - stat.st_mtime > LEFT_OVER:
                os.unlink(entry.path)
    over = size + sum(entry[1] for entry in kept) - LIMIT
    for _, freed, path in sorted(kept):
        if over <= 0:
            break
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        over -= freed


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a worker that was forked meanwhile has the descriptor too
        os.close(descriptor)
