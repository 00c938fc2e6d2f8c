"""Kept shared segments: how payloads above 64 KiB travel between processes of one machine.

The *owner* writes into a memfd that it keeps mapped; the *receiver* maps it once, read-only, and keeps the
mapping too. Fresh shared memory costs 1.2 s per GiB in page faults, a kept segment one memcpy. The memfd is
sealed (SHRINK, GROW, FUTURE_WRITE), so that a receiver can only read. Arrays therefore arrive read-only. The
owner uses a segment again after the receiver's release: the receiver releases when nothing refers to its
mapping any more, which CPython's reference count of the mmap object tells exactly.

Above the pool's budget (an eighth of the machine's memory) payloads go to unlinked temporary files, by the
same road.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from lorry.wire.pickling import Piece

ALIGNMENT = 64
TWO_CORES = 64 << 20
"""Bytes from which a second thread is worth its start."""
_GRAIN = 1 << 20
_ADD_SEALS = 1033
_SEALS = 2 | 4 | 16
"""F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE (linux/fcntl.h; the fcntl module lacks the last)."""


def offsets(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Where each piece starts, and the size of it all. Pieces are aligned to 64 bytes, as vector code likes."""
    starts, end = [], 0
    for length in lengths:
        starts.append(end)
        end += -(-length // ALIGNMENT) * ALIGNMENT
    return starts, end


def _copy(view: mmap.mmap, start: int, piece: Piece) -> None:
    """One core does not use all that the memory can do: two take 45 ms for a GiB and one takes 70. Python's own copy
    holds the interpreter, numpy's does not."""
    numpy = sys.modules.get("numpy")
    if numpy is None or len(piece) < TWO_CORES:
        view[start : start + len(piece)] = piece
        return
    source = numpy.frombuffer(piece, numpy.uint8)
    target = numpy.frombuffer(view, numpy.uint8, len(piece), start)
    half = len(piece) // 2
    second = threading.Thread(target=numpy.copyto, args=(target[half:], source[half:]))
    second.start()
    target[:half] = source[:half]
    second.join()


def memory_budget() -> int:
    """Bytes that one pool may keep: an eighth of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


@dataclass(slots=True, eq=False)
class Segment:
    """One segment of this process's own. `fd` is what receivers get: they cannot write through it."""

    number: int
    size: int
    fd: int
    view: mmap.mmap
    in_memory: bool
    busy: bool = True
    sent: bool = False

    def close(self) -> None:
        self.view.close()
        os.close(self.fd)


class SegmentPool:
    """The owner's side. Not thread-safe: one pool belongs to one connection."""

    def __init__(self, budget: int | None = None, folder: str | None = None) -> None:
        self._budget = memory_budget() if budget is None else budget
        self._folder = folder
        self._segments: dict[int, Segment] = {}
        self._dropped: list[int] = []
        """Given up, and the receiver does not know yet."""
        self._next = 1

    def __del__(self) -> None:
        self.close()

    def write(self, pieces: Sequence[Piece]) -> tuple[Segment, list[int]]:
        """A segment that holds the pieces, and numbers of segments that were given up for it (send DROP).

        Raises OSError (ENOSPC, ENOMEM) when neither memory nor disk can take it."""
        starts, need = offsets([len(piece) for piece in pieces])
        segment = self._take(need)
        try:
            for start, piece in zip(starts, pieces, strict=True):
                _copy(segment.view, start, piece)
        except BaseException:
            segment.busy = False
            raise
        dropped, self._dropped = self._dropped, []
        return segment, dropped

    def release(self, number: int) -> None:
        """The receiver does not use it any more. Unknown numbers are ignored (it was dropped meanwhile)."""
        segment = self._segments.get(number)
        if segment is None:
            return
        segment.busy = False
        if not segment.in_memory:
            del self._segments[number]
            segment.close()

    def forget_receivers(self) -> None:
        """The connection is new: the other side knows none of the segments, and uses none."""
        self._dropped.clear()
        for segment in list(self._segments.values()):
            segment.sent = False
            self.release(segment.number)

    def close(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def _take(self, need: int) -> Segment:
        free = sorted((s for s in self._segments.values() if not s.busy), key=lambda s: s.size)
        for segment in free:
            if need <= segment.size <= max(4 * need, _GRAIN):
                segment.busy = True
                return segment
        size = max(1, -(-need // _GRAIN)) * _GRAIN
        kept = sum(s.size for s in self._segments.values() if s.in_memory)
        for segment in reversed(free):  # the largest first: fewest mappings lost
            if kept + size <= self._budget:
                break
            self._dropped.append(segment.number)
            kept -= segment.size
            del self._segments[segment.number]
            segment.close()
        make = self._in_memory if kept + size <= self._budget else self._in_file
        segment = make(size)
        self._segments[segment.number] = segment
        return segment

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _in_memory(self, size: int) -> Segment:
        fd = os.memfd_create("lorry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            view = mmap.mmap(fd, size)
            fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return Segment(self._number(), size, fd, view, in_memory=True)

    def _in_file(self, size: int) -> Segment:
        with tempfile.TemporaryFile(dir=self._folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # ENOSPC now, not SIGBUS while copying
            view = mmap.mmap(file.fileno(), size)
            # Opened again read-only: a file cannot be sealed.
            fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        return Segment(self._number(), size, fd, view, in_memory=False)


class SegmentMap:
    """The receiver's side: mappings of the other side's segments, kept until it drops them."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self.in_use: set[int] = set()
        """Segments that the last look found in use."""

    def add(self, number: int, fd: int) -> None:
        """Map a segment that arrived with a frame. Takes over `fd`."""
        try:
            size = os.fstat(fd).st_size
            self._maps[number] = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)

    def pieces(self, number: int, lengths: Sequence[int]) -> list[memoryview]:
        """Read-only views of the payload. KeyError if the segment never arrived; ValueError if it is too short."""
        mapped = self._maps[number]
        starts, end = offsets(lengths)
        if end > len(mapped):
            raise ValueError(f"segment {number} has {len(mapped)} bytes, its reference names {end}")
        self.in_use.add(number)
        whole = memoryview(mapped)
        return [whole[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    def unused(self) -> list[int]:
        """Segments that were in use and to which nothing refers now; each is reported once."""
        done = [number for number in self.in_use if self._idle(number)]
        self.in_use.difference_update(done)
        return done

    def drop(self, number: int) -> None:
        """The owner gave it up. Values that still refer to it keep the memory alive."""
        self._maps.pop(number, None)
        self.in_use.discard(number)

    def clear(self) -> None:
        self._maps.clear()
        self.in_use.clear()

    def _idle(self, number: int) -> bool:
        # Exported buffers hold references to the mmap object. Two remain without them: the dictionary's and
        # getrefcount's own argument.
        return sys.getrefcount(self._maps[number]) <= 2
