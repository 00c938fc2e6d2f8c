"""A shuffled order that is computed instead of kept: any place in it costs the same, and it takes no memory."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

ROUNDS = 6
"""Four make a permutation that looks random (Luby and Rackoff 1988); two more cost little."""
WORD = (1 << 64) - 1
ODD = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
"""Multipliers that carry every bit upwards: the golden ratio in 64 bits, and the one of the mixer rrmxmx."""
WORTH = 64
"""Places from which on NumPy is quicker than a loop."""
FEW = 4096
"""Up to here the order is kept: shifts of a small grid cannot make every order (on 3 by 3 cells only even ones)."""


class Permutation:
    """The order of `size` samples in one epoch: place → sample, each sample once. It depends on (size, seed, epoch)
    alone: the same on every machine and Python, with NumPy and without.

    Few samples are sorted by random words, which makes all orders equally likely. More go through a Feistel network on
    a grid of rows and columns: rounds shift the row by a keyed hash of the column, then the column by one of the row,
    and each shift can be undone. The grid has fewer than √size cells too many; who lands on one of them walks on until
    it is inside (cycle walking, Black and Rogaway 2002).
    """

    __slots__ = ("_columns", "_few", "_keys", "_rows", "size")

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size = size
        self._few = _sorted(size, f"lorry.order/{seed}/{epoch}") if size <= FEW else None
        self._rows = math.isqrt(max(size, 1) - 1) + 1
        self._columns = -(-size // self._rows)
        digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * ROUNDS, person=b"lorry.order")
        self._keys = struct.unpack(f"<{ROUNDS}Q", digest.digest())

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.size:
            raise IndexError(f"place {place} of {self.size}")
        return self._walk(place) if self._few is None else self._few[place]

    def block(self, start: int, stop: int) -> list[int]:
        """The samples at places `start` to `stop`, which must lie inside."""
        assert 0 <= start <= stop <= self.size
        if self._few is not None:
            return self._few[start:stop]
        numpy = numpy_if_there() if stop - start >= WORTH else None
        if numpy is None:
            return [self._walk(place) for place in range(start, stop)]
        cells = self._shuffle(numpy.arange(start, stop, dtype=numpy.uint64))
        outside = numpy.flatnonzero(cells >= self.size)
        while outside.size:
            cells[outside] = self._shuffle(cells[outside])
            outside = outside[cells[outside] >= self.size]
        found: list[int] = cells.tolist()
        return found

    def _walk(self, place: int) -> int:
        cell: int = self._shuffle(place)
        while cell >= self.size:
            cell = self._shuffle(cell)
        return cell

    def _shuffle(self, cell: Any) -> Any:
        """An int, or an array of uint64: the arithmetic is the same, the array's wraps by itself."""
        row, column = divmod(cell, self._columns)
        keys = iter(self._keys)
        for key in keys:
            row = (row + _mix(column, key)) % self._rows
            column = (column + _mix(row, next(keys))) % self._columns
        return row * self._columns + column


def _sorted(size: int, key: str) -> list[int]:
    words = struct.unpack(f"<{size}Q", hashlib.shake_128(key.encode()).digest(8 * size))
    return sorted(range(size), key=words.__getitem__)


def _mix(number: Any, key: int) -> Any:
    """32 bits that hang on every bit of both."""
    number = ((number ^ key) * ODD[0]) & WORD
    return (((number ^ (number >> 32)) * ODD[1]) & WORD) >> 32


def numpy_if_there() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy
