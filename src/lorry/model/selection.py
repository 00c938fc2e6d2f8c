"""Arithmetic on selections of inputs: sorted, disjoint, non-touching half-open ranges of indices.

A chunk of a thousand inputs that finished in order is one range, so that journal rows and messages stay
short. Every function takes normal selections (what `normalise`, `full`, `from_indices` and `unpack` give)
and returns one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import chain

from lorry.model.records import Selection

INDEX_LIMIT = 2**32
"""Indices are packed as uint32; the end of a range may not pass this either."""
_ONE_RANGE = struct.Struct("<II")


def full(n: int) -> Selection:
    """All of 0 … n-1."""
    return ((0, n),) if n > 0 else ()


def normalise(ranges: Iterable[tuple[int, int]]) -> Selection:
    """Ranges in any order, overlapping or touching, as a selection. Empty ones (hi <= lo) are dropped.

    Raises ValueError for an index below 0 or that needs more than 32 bits.
    """
    merged: list[tuple[int, int]] = []
    for lo, hi in sorted((lo, hi) for lo, hi in ranges if lo < hi):
        if merged and lo <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(hi, merged[-1][1]))
        else:
            merged.append((lo, hi))
    if merged and (merged[0][0] < 0 or merged[-1][1] >= INDEX_LIMIT):
        raise ValueError(f"indices lie in 0 … {INDEX_LIMIT - 2}, not {merged[0][0]} … {merged[-1][1] - 1}")
    return tuple(merged)


def from_indices(numbers: Iterable[int]) -> Selection:
    """The selection of these indices, in any order, repeated or not."""
    return normalise((number, number + 1) for number in numbers)


def indices(sel: Selection) -> Iterator[int]:
    """Each index, in order."""
    return chain.from_iterable(range(lo, hi) for lo, hi in sel)


def count(sel: Selection) -> int:
    """How many indices."""
    if len(sel) == 1:
        return sel[0][1] - sel[0][0]
    return sum(hi - lo for lo, hi in sel)


def union(a: Selection, b: Selection) -> Selection:
    """What is in `a` or in `b`."""
    if not a or not b:
        return a or b
    return normalise(chain(a, b))


def intersect(a: Selection, b: Selection) -> Selection:
    """What is in both."""
    common: list[tuple[int, int]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        lo, hi = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if lo < hi:
            common.append((lo, hi))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(common)


def subtract(a: Selection, b: Selection) -> Selection:
    """What is in `a` and not in `b`."""
    if not a or not b:
        return a
    gaps = chain((0,), chain.from_iterable(b), (INDEX_LIMIT,))
    return intersect(a, tuple((lo, hi) for lo, hi in zip(gaps, gaps, strict=True) if lo < hi))


def overlaps(a: Selection, b: Selection) -> bool:
    """Whether they share an index."""
    if not a or not b or a[-1][1] <= b[0][0] or b[-1][1] <= a[0][0]:
        return False
    return bool(intersect(a, b))


def covers(a: Selection, b: Selection) -> bool:
    """Whether all of `b` is in `a`."""
    return a == b or intersect(a, b) == b  # equal nearly always, and asked for at every result


def halves(sel: Selection) -> tuple[Selection, Selection]:
    """Split by count, in order; the first half gets the extra one of an odd number."""
    wanted = (count(sel) + 1) // 2
    for position, (lo, hi) in enumerate(sel):
        if wanted <= hi - lo:
            middle = lo + wanted
            return _spans(*sel[:position], (lo, middle)), _spans((middle, hi), *sel[position + 1 :])
        wanted -= hi - lo
    return (), ()


def _spans(*ranges: tuple[int, int]) -> Selection:
    return tuple((lo, hi) for lo, hi in ranges if lo < hi)


def pack(sel: Selection) -> bytes:
    """Little-endian uint32 pairs, 8 bytes a range."""
    if len(sel) == 1:
        return _ONE_RANGE.pack(*sel[0])
    return struct.pack(f"<{2 * len(sel)}I", *chain.from_iterable(sel))


def unpack(buffer: bytes | bytearray | memoryview) -> Selection:
    """Inverse of `pack`. The bytes may come from a container: ValueError unless they hold a selection."""
    if len(buffer) == _ONE_RANGE.size:
        sel: Selection = (_ONE_RANGE.unpack(buffer),)
    elif len(buffer) % _ONE_RANGE.size:
        raise ValueError(f"a packed selection has 8 bytes a range, not {len(buffer)} bytes")
    else:
        sel = tuple(_ONE_RANGE.iter_unpack(buffer))
    end = -1
    for lo, hi in sel:
        if not end < lo < hi:
            raise ValueError(f"not a selection: range {lo} … {hi} after {end}")
        end = hi
    return sel


def split(selection: Selection, size: int) -> tuple[Selection, Selection]:
    """The first `size` indices, and the rest."""
    first: list[tuple[int, int]] = []
    rest: list[tuple[int, int]] = []
    for low, high in selection:
        middle = min(high, low + size)
        if middle > low:
            first.append((low, middle))
        if high > middle:
            rest.append((middle, high))
        size -= middle - low
    return tuple(first), tuple(rest)
