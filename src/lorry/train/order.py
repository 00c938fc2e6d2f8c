"""The order of an epoch: a plain shuffle, or for much data one in two levels, whose neighbours in time are neighbours
on the disk.

Were 100 GB shuffled plainly, each sample would lie somewhere else, and each would cost the reading of a page or a
block that is gone again when its next sample comes. So data is cut into pieces of neighbours; the pieces are shuffled;
64 of them, from all over the data, are a window; and within a window all samples are shuffled. Each piece is read once
per epoch, and two windows are all that memory, or a cache of blocks, has to hold.
"""

from __future__ import annotations

from lorry.train.permutation import Permutation
from lorry.train.seeding import number

PIECES = 64
WINDOW = 512 << 20
"""Bytes. Checkpoints count on both numbers: with others the same place means other samples."""
FEW = 4096
"""Samples that cost less one by one than the window around them does."""


class Order:
    """Place → sample of one epoch, each sample once. All pieces have the same length; the few samples that are left
    over, fewer than there are pieces, belong to the last window."""

    def __init__(self, total: int, windows: int, seed: int, epoch: int, shuffle: bool) -> None:
        self._windows = windows if total >= windows * PIECES else 1
        self._length = max(1, total // (self._windows * PIECES))
        self._total, self._seed, self._epoch, self._shuffle = total, seed, epoch, shuffle
        self._size = self._length * PIECES
        self._pieces = Permutation(self._windows * PIECES, number("pieces", seed, epoch, 0), epoch)
        self._open: tuple[int, Permutation, list[int]] | None = None

    def block(self, start: int, stop: int) -> list[int]:
        """The samples at places `start` to `stop`, which must lie inside."""
        if not self._shuffle:
            return list(range(start, stop))
        found: list[int] = []
        while start < stop:
            window, end = self._window(start)
            part = min(stop, end)
            found += self._within(window, start, part)
            start = part
        return found

    def coming(self, start: int, stop: int, *, first: bool) -> list[range]:
        """What to fetch while the samples at these places are worked on: a share of the next window, and at first this
        one, unless so little of it is left that the samples themselves cost less."""
        window, end = self._window(start)
        found = self._runs(window, 0, PIECES) if first and end - start > FEW else []
        if window + 1 < self._windows:
            begin = window * self._size
            shares = ((place - begin) * PIECES // self._size for place in (start, min(stop, end)))
            found += self._runs(window + 1, *shares)
        return found

    def _window(self, place: int) -> tuple[int, int]:
        """Its number, and the place behind it."""
        window = min(place // self._size, self._windows - 1)
        return window, self._total if window == self._windows - 1 else (window + 1) * self._size

    def _runs(self, window: int, first: int, last: int) -> list[range]:
        pieces = self._starts(window)[first:last]
        runs = [range(start, min(start + self._length, self._total)) for start in pieces if start < self._total]
        rest = range(self._windows * self._size, self._total)
        return [*runs, rest] if last == PIECES and window == self._windows - 1 and rest else runs

    def _starts(self, window: int) -> list[int]:
        """The first samples of its pieces."""
        first, end = window * PIECES, (window + 1) * PIECES
        shuffled = self._shuffle and self._windows > 1
        return [n * self._length for n in (self._pieces.block(first, end) if shuffled else range(first, end))]

    def _within(self, window: int, start: int, stop: int) -> list[int]:
        if self._open is None or self._open[0] != window:
            self._open = window, self._shuffled(window), self._shifts(window)
        _, permutation, shifts = self._open
        begin, length = window * self._size, self._length
        places = permutation.block(start - begin, stop - begin)
        return [place + shifts[place // length] for place in places] if self._windows > 1 else places

    def _shifts(self, window: int) -> list[int]:
        """How far each piece of a window, and what is left over, lies behind its place in it."""
        shifts = [start - place * self._length for place, start in enumerate(self._starts(window))]
        rest = self._total - self._windows * self._size
        return [*shifts, *[(self._windows - 1) * self._size] * (rest // self._length + 1)]

    def _shuffled(self, window: int) -> Permutation:
        if self._windows == 1:
            return Permutation(self._total, self._seed, self._epoch)
        begin = window * self._size
        return Permutation(
            self._window(begin)[1] - begin, number("window", self._seed, self._epoch, window), self._epoch
        )
