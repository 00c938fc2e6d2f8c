"""Curves and bars out of characters."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.cli.curves import bar, can_draw, chart, curve, levels

VALUES = st.floats(width=64)
POINTS = st.lists(st.tuples(st.integers(0, 10**9), VALUES), max_size=60)


@given(POINTS, st.integers(1, 120), st.integers(1, 10), st.booleans(), st.none() | st.just(0.0))
def test_a_chart_is_never_wider_than_asked(
    points: list[tuple[int, float]], columns: int, rows: int, drawn: bool, floor: float | None
) -> None:
    lines = chart("loss", points, columns=columns, rows=rows, drawn=drawn, floor=floor)
    assert max(map(len, lines)) <= columns
    if any(math.isfinite(y) and abs(y) < 1e300 for _, y in points):
        assert len(lines) == rows + 2
    else:
        assert lines == ["loss: no values yet"[:columns]]


@given(POINTS, st.integers(1, 120), st.integers(1, 10))
def test_a_chart_without_drawing_characters_is_ascii(points: list[tuple[int, float]], columns: int, rows: int) -> None:
    assert all(line.isascii() for line in chart("loss", points, columns=columns, rows=rows, drawn=False))


@given(st.lists(VALUES, min_size=1, max_size=80), st.integers(1, 60), st.integers(2, 40), st.booleans())
def test_what_rises_rises_on_the_screen(values: list[float], columns: int, height: int, falls: bool) -> None:
    ordered = sorted(value for value in values if math.isfinite(value))
    if falls:
        ordered.reverse()
    found = [level for level in levels(list(enumerate(ordered)), columns, height) if level is not None]
    assert found == sorted(found, reverse=falls)
    assert all(0 <= level < height for level in found)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=80), st.integers(2, 60))
def test_a_curve_has_no_hole(values: list[float], columns: int) -> None:
    found = levels(list(enumerate(values)), columns, 24)
    assert None not in found
    cells = curve(list(enumerate(values)), columns=columns, rows=6, drawn=True)
    assert all(any(line[column] != " " for line in cells) for column in range(columns))


def test_dots_join_into_a_line() -> None:
    assert curve([(0, 0.0), (1, 1.0)], columns=4, rows=1, drawn=True) == ["⣀⠤⠒⠉"]
    assert curve([(0, 0.0), (1, 1.0)], columns=6, rows=1, drawn=False) == ["..--''"]


def test_what_is_no_number_leaves_a_gap_that_is_bridged_and_the_title_says_it() -> None:
    points = [(0, 3.0), (1, math.nan), (2, math.inf), (3, 1.0), (4, math.nan)]
    lines = chart("loss", points, columns=40, rows=4, drawn=True)
    assert lines[0] == "loss 3 → nan, lowest 1"
    assert lines[1].startswith("3 ┤")
    assert lines[4].startswith("1 ┤")


def test_one_point_is_a_dot_and_equal_ones_a_level_line() -> None:
    assert chart("loss", [(7, 2.5)], columns=40, rows=3, drawn=True)[2] == "2.5 ┤⠂"
    found = levels([(0, 2.5), (9, 2.5)], 10, 12)
    assert found == [6] * 10


def test_the_floor_is_the_lower_end_of_the_axis() -> None:
    assert set(levels([(0, 3.0), (1, 3.1)], 2, 12, 0.0)) == {11}
    assert levels([(0, 3.0), (1, 3.1)], 2, 12) == [0, 11]


@given(st.floats(-1, 2), st.integers(2, 60), st.booleans())
def test_a_bar_has_its_width_and_is_full_only_at_the_end(fraction: float, cells: int, drawn: bool) -> None:
    text = bar(fraction, cells, drawn=drawn)
    assert len(text) == cells
    assert (text[1:-1] == ("█" if drawn else "#") * (cells - 2)) == (fraction >= 1 or cells == 2)


@pytest.mark.parametrize(("encoding", "term", "draws"), [("utf-8", "xterm", True), ("latin-1", "xterm", False)])
def test_braille_is_for_terminals_that_have_it(
    encoding: str, term: str, draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert can_draw(stream) is draws
    monkeypatch.setenv("TERM", "linux")
    assert not can_draw(stream)
