"""Curves and bars out of characters: braille dots and eighths of blocks, ASCII where the terminal has no others."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

Points = Sequence[tuple[float, float]]

HUGE = 1e300
"""Larger numbers are no points: their differences are infinite."""
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a cell's dots: two columns of four, from the top (Unicode, block 2800)."""
STROKES = {1: "'", 2: "-", 4: "."}
"""Of a cell's three dots in ASCII, from the top; of several `|`."""
EIGHTHS = " ▏▎▍▌▋▊▉█"
FEWEST_CELLS = 8
"""Of a curve that has labels beside it."""


def can_draw(stream: TextIO) -> bool:
    """Whether the terminal has more than ASCII. The console of a Linux machine has blocks, but no braille."""
    try:
        "⣿█▏→…".encode(getattr(stream, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return os.environ.get("TERM") != "linux"


def bar(fraction: float, cells: int, *, drawn: bool) -> str:
    """`▕███▌   ▏`, or `[###    ]`, in `cells` cells, frame included."""
    inside = max(0, cells - 2)
    fraction = min(1.0, max(0.0, fraction))
    if not drawn:
        return f"[{'#' * int(inside * fraction):<{inside}}]"
    whole, eighths = divmod(int(inside * fraction * 8), 8)
    return f"▕{('█' * whole + EIGHTHS[eighths] * (whole < inside)):<{inside}}▏"


def number(value: float) -> str:
    """At most ten characters: `1.234`, `-1.2e-05`, `nan`."""
    return f"{value:.4g}"


def chart(title: str, points: Points, *, columns: int, rows: int, drawn: bool, floor: float | None = None) -> list[str]:
    """A title with the first, last and lowest value, the curve in `rows` lines, and the range of x below. No line is
    longer than `columns`. `floor`: the axis begins there; by default at the lowest value."""
    finite = _finite(points)
    if not finite:
        return [f"{title}: no values yet"[:columns]]
    to = "→" if drawn else "->"
    first, last = points[0][1], points[-1][1]
    lowest = min(y for _, y in finite)
    low, high = _range(finite, floor)
    head = f"{title} {number(first)} {to} {number(last)}, lowest {number(lowest)}"
    edge = max(len(number(low)), len(number(high)))
    labelled = columns - edge - 2 >= FEWEST_CELLS
    cells = columns - edge - 2 if labelled else columns
    lines = curve(finite, columns=cells, rows=rows, drawn=drawn, floor=floor)
    left, right = f"{finite[0][0]:,.0f}", f"{finite[-1][0]:,.0f}"
    below = left + right.rjust(cells - len(left)) if left != right and len(left) + len(right) < cells else right[:cells]
    if labelled:
        names = {0: number(high), rows - 1: number(low)} if high > low else {rows // 2: number(low)}
        tick, wall = ("┤", "│") if drawn else ("+", "|")
        lines = [f"{names.get(i, ''):>{edge}} {tick if i in names else wall}{line}" for i, line in enumerate(lines)]
        below = " " * (edge + 2) + below
    return [line.rstrip() for line in (head[:columns], *lines, below)]


def curve(points: Points, *, columns: int, rows: int, drawn: bool, floor: float | None = None) -> list[str]:
    """`rows` lines of `columns` cells. Each column of dots stands for the mean of the points in it."""
    wide, high = (2, 4) if drawn else (1, 3)
    bits = [[0] * columns for _ in range(rows)]
    before = None
    for x, level in enumerate(levels(points, columns * wide, rows * high, floor)):
        if level is None:
            continue
        start = level if before is None else before + (level > before) - (level < before)
        for dot in range(min(start, level), max(start, level) + 1):
            row, place = divmod(rows * high - 1 - dot, high)
            bits[row][x // wide] |= BRAILLE[x % wide][place] if drawn else 1 << place
        before = level
    if drawn:
        return ["".join(chr(0x2800 + cell) if cell else " " for cell in row) for row in bits]
    return ["".join(STROKES.get(cell, "|") if cell else " " for cell in row) for row in bits]


def levels(points: Points, columns: int, height: int, floor: float | None = None) -> list[int | None]:
    """For each column how high the curve stands, 0 … height - 1; None left and right of the points."""
    means = _means(points, columns)
    low, high = _range(_finite(points), floor)
    if low == high:
        return [None if value is None else height // 2 for value in means]
    return [None if value is None else round((value - low) / (high - low) * (height - 1)) for value in means]


def _range(finite: Points, floor: float | None) -> tuple[float, float]:
    """Of the axis."""
    values = [y for _, y in finite] + ([] if floor is None else [floor])
    return min(values, default=0.0), max(values, default=0.0)


def _means(points: Points, columns: int) -> list[float | None]:
    """Of the points in each column; between columns with points a straight line."""
    finite = _finite(points)
    if not finite or columns < 1:
        return [None] * columns
    first, last = finite[0][0], finite[-1][0]
    buckets: list[list[float]] = [[] for _ in range(columns)]
    for x, y in finite:
        buckets[int((x - first) / (last - first) * (columns - 1)) if last > first else 0].append(y)
    means = [_mean(bucket) if bucket else None for bucket in buckets]
    places = [i for i, value in enumerate(means) if value is not None]
    for left, right in itertools.pairwise(places):
        begin, end = means[left], means[right]
        assert begin is not None
        assert end is not None
        for i in range(left + 1, right):
            part = (i - left) / (right - left)
            means[i] = _within(begin * (1 - part) + end * part, begin, end)
    return means


def _mean(values: list[float]) -> float:
    return _within(math.fsum(value / len(values) for value in values), min(values), max(values))


def _within(value: float, one: float, other: float) -> float:
    """Rounding must not lead outside: of what rises, the curve would fall by a dot."""
    return min(max(value, min(one, other)), max(one, other))


def _finite(points: Iterable[tuple[Any, Any]]) -> list[tuple[float, float]]:
    return sorted((x, y) for x, y in points if abs(x) < HUGE and abs(y) < HUGE)
