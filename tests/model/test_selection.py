"""Selections against sets of integers: the obvious implementation, too slow to ship."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.model import selection as s
from lorry.model.records import Selection

index_sets = st.sets(st.integers(0, 40), max_size=20)
pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=10)


def of(numbers: set[int]) -> Selection:
    return s.from_indices(numbers)


def is_normal(sel: Selection) -> bool:
    flat = [bound for pair in sel for bound in pair]
    return all(a < b for a, b in pairwise(flat))


@given(pairs)
def test_normalise_keeps_the_indices_and_gives_one_form(ranges: list[tuple[int, int]]) -> None:
    wanted = {i for lo, hi in ranges for i in range(lo, hi)}
    sel = s.normalise(ranges)
    assert is_normal(sel)
    assert list(s.indices(sel)) == sorted(wanted)
    assert s.from_indices(wanted) == sel
    assert s.count(sel) == len(wanted)


@given(index_sets, index_sets)
def test_set_arithmetic(a: set[int], b: set[int]) -> None:
    results = {
        "union": (s.union(of(a), of(b)), a | b),
        "intersect": (s.intersect(of(a), of(b)), a & b),
        "subtract": (s.subtract(of(a), of(b)), a - b),
    }
    for name, (got, wanted) in results.items():
        assert got == of(wanted), name
    assert s.overlaps(of(a), of(b)) == bool(a & b)
    assert s.covers(of(a), of(b)) == (b <= a)


@given(index_sets)
def test_halves_split_by_count_and_in_order(numbers: set[int]) -> None:
    first, second = s.halves(of(numbers))
    assert s.count(first) - s.count(second) in (0, 1)
    assert [*s.indices(first), *s.indices(second)] == sorted(numbers)
    assert is_normal(first)
    assert is_normal(second)


@given(index_sets)
def test_pack_round_trip(numbers: set[int]) -> None:
    packed = s.pack(of(numbers))
    assert len(packed) == 8 * len(of(numbers))
    assert s.unpack(packed) == s.unpack(memoryview(packed)) == of(numbers)


@given(st.integers(-1, 50))
def test_full(n: int) -> None:
    assert list(s.indices(s.full(n))) == list(range(n))


@given(st.binary(max_size=40))
def test_unpack_of_hostile_bytes_gives_a_selection_or_a_value_error(data: bytes) -> None:
    try:
        sel = s.unpack(data)
    except ValueError:
        return
    assert is_normal(sel)
    assert s.pack(sel) == data


@pytest.mark.parametrize(
    "flat", [(3, 3), (5, 2), (0, 2, 2, 3), (4, 5, 0, 1)], ids=["empty", "reversed", "touching", "unsorted"]
)
def test_unpack_refuses_what_is_not_normal(flat: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not a selection"):
        s.unpack(struct.pack(f"<{len(flat)}I", *flat))


@pytest.mark.parametrize("ranges", [[(-1, 2)], [(0, 2**32)]])
def test_normalise_refuses_what_cannot_be_packed(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="indices lie"):
        s.normalise(ranges)
