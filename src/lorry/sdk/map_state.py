"""The logic of `.map` without I/O: how large chunks are, which are under way, which outputs are due.

A chunk's number is the index of its first input. Its size follows the measured time of an input: thousands of
inputs that take microseconds travel together, inputs that take seconds travel alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorry.errors import CallCancelledError, InternalError
from lorry.model import selection as sel
from lorry.model.records import Selection, Status
from lorry.sdk.results import exception_of, load
from lorry.wire.endpoint import Frame
from lorry.wire.frames import MAX_INLINE, Flag, unpack_selection
from lorry.wire.pickling import Piece

TARGET_SECONDS = 0.02
"""Work in one chunk: long against a dispatch (0.1 ms), short against a person's patience and the last chunk's tail."""
MAX_CHUNK = 16_384
TARGET_BYTES = MAX_INLINE * 3 // 4
"""Chunks stay in one frame: larger ones cost a file in the journal."""
WINDOW_SECONDS = 1.0
"""Work under way ahead of the consumer, per core."""


@dataclass(slots=True)
class Chunk:
    """Inputs that were sent and are not all answered."""

    start: int
    count: int
    payload: tuple[bytes, list[memoryview]] | None
    """Kept until the server has acknowledged the chunk."""
    left: Selection


class Outcome:
    """An input that failed, at its place among the outputs."""

    __slots__ = ("problem",)

    def __init__(self, problem: BaseException) -> None:
        self.problem = problem


class MapState:
    def __init__(self, *, ordered: bool, singly: bool = False) -> None:
        """`singly`: one input per chunk, however quick they are."""
        self._ordered = ordered
        self._singly = singly
        self._cores = os.cpu_count() or 1
        self._chunks: dict[int, Chunk] = {}
        self._ready: dict[int, list[Any]] = {}
        self._unordered: deque[list[Any]] = deque()
        self._next_output = 0
        self._seconds: float | None = None
        self._bytes: float | None = None
        self.sent = 0
        """Inputs handed to the server so far."""
        self.finished = 0
        self.consumed = 0
        self.exhausted = False
        """No more inputs will come."""

    # Sending

    @property
    def chunk_size(self) -> int:
        """Inputs for the next chunk."""
        if self._seconds is None or self._singly:
            return 1
        by_time = TARGET_SECONDS / max(self._seconds, 1e-7)
        by_bytes = TARGET_BYTES / max(self._bytes or 1.0, 1.0)
        return max(1, min(int(by_time), int(by_bytes), MAX_CHUNK))

    @property
    def may_send(self) -> bool:
        """Back-pressure: enough is under way, or waits for a consumer that does not come."""
        under_way = self.sent - self.consumed
        if self._seconds is None:
            return under_way < 4 * self._cores
        window = self._cores * WINDOW_SECONDS / max(self._seconds, 1e-7)
        return under_way < max(8 * self._cores, min(int(window), 64 * self.chunk_size))

    def add(self, count: int, payload: tuple[bytes, list[memoryview]]) -> Chunk:
        """A chunk of the next `count` inputs."""
        chunk = Chunk(self.sent, count, payload, ((0, count),))
        self._chunks[chunk.start] = chunk
        self.sent += count
        size = (len(payload[0]) + sum(map(len, payload[1]))) / count
        self._bytes = size if self._bytes is None else max(size, self._bytes + 0.2 * (size - self._bytes))
        return chunk

    def acknowledged(self, start: int) -> None:
        chunk = self._chunks.get(start)
        if chunk is not None:
            chunk.payload = None

    def unacknowledged(self) -> list[Chunk]:
        """To be sent again after a lost connection."""
        return [chunk for chunk in self._chunks.values() if chunk.payload is not None]

    # Receiving

    def take(self, frame: Frame, pieces: list[Piece]) -> Selection:
        """Outputs of a RESULT frame; what it covers, to be acknowledged. A second delivery changes nothing."""
        if frame.status == Status.CANCELLED and not frame.count:
            raise CallCancelledError("the map was cancelled, or its app was stopped")
        covered, _ = unpack_selection(memoryview(frame.body))
        chunk = self._chunks.get(frame.number)
        if chunk is None or sel.subtract(covered, chunk.left):
            return covered
        values = self._values(frame, pieces, sel.count(covered))
        chunk.left = sel.subtract(chunk.left, covered)
        chunk.payload = None
        if not chunk.left:
            del self._chunks[chunk.start]
        self._measure(frame)
        position = 0
        for low, high in covered:
            part = values[position : position + high - low]
            position += high - low
            if self._ordered:
                self._ready[chunk.start + low] = part
            else:
                self._unordered.append(part)
        self.finished += position
        return covered

    def _values(self, frame: Frame, pieces: list[Piece], count: int) -> list[Any]:
        if frame.status == Status.OK:
            try:
                values = list(load(pieces))
            except Exception as unreadable:
                return [Outcome(unreadable)] * count
            if len(values) == count:
                return values
            return [Outcome(InternalError(f"a container sent {len(values)} results for {count} inputs"))] * count
        problem = exception_of(frame.status, bytes(pieces[0]))
        return [Outcome(problem) for _ in range(count)]

    def _measure(self, frame: Frame) -> None:
        if frame.status != Status.OK or not frame.count or not frame.flags & Flag.BATCH:
            if self._seconds is None:
                self._seconds = TARGET_SECONDS
            return
        seconds = frame.micros / 1e6 / frame.count
        self._seconds = seconds if self._seconds is None else self._seconds + 0.3 * (seconds - self._seconds)

    def outputs(self) -> Iterator[list[Any]]:
        """Lists of outputs that are due now."""
        if self._ordered:
            while (part := self._ready.pop(self._next_output, None)) is not None:
                self._next_output += len(part)
                yield part
        else:
            while self._unordered:
                yield self._unordered.popleft()

    @property
    def done(self) -> bool:
        return self.exhausted and self.finished == self.sent and not self._ready and not self._unordered
