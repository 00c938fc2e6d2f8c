"""Selections and segment references: round trips, and nothing but ValueError for malformed bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.model.records import Selection
from lorry.model.selection import from_indices
from lorry.wire.frames import (
    HEADER,
    HEADER_SIZE,
    Kind,
    pack,
    pack_reference,
    pack_selection,
    renumber_reference,
    unpack_reference,
    unpack_selection,
)

selections = st.sets(st.integers(0, 500), max_size=60).map(from_indices)
lengths = st.lists(st.integers(0, 1 << 50), max_size=20)


def test_the_header_has_forty_bytes_and_keeps_its_fields() -> None:
    packed = pack(Kind.RESULT, flags=3, status=2, number=7, lease=9 << 32, call=b"c" * 16, micros=5, count=6)
    assert len(packed) == HEADER_SIZE == 40
    assert HEADER.unpack(packed) == (Kind.RESULT, 3, 2, 0, 7, 9 << 32, b"c" * 16, 5, 6)


@given(selections, st.binary(max_size=50))
def test_a_selection_comes_back_with_what_follows_it(selection: Selection, rest: bytes) -> None:
    found, tail = unpack_selection(memoryview(pack_selection(selection) + rest))
    assert found == selection
    assert bytes(tail) == rest


@given(st.binary(max_size=80))
def test_any_bytes_are_a_selection_or_a_value_error(body: bytes) -> None:
    try:
        selection, rest = unpack_selection(memoryview(body))
    except ValueError:
        return
    assert pack_selection(selection) + bytes(rest) == body


@pytest.mark.parametrize("pairs", [(3, 3), (4, 2), (0, 5, 4, 6), (5, 6, 0, 1)])
def test_unsorted_empty_or_overlapping_ranges_are_refused(pairs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        unpack_selection(memoryview(struct.pack(f"<H{len(pairs)}I", len(pairs) // 2, *pairs)))


@given(st.integers(0, 2**32 - 1), lengths, st.integers(0, 2**32 - 1))
def test_a_reference_comes_back_and_can_be_renumbered(number: int, pieces: list[int], other: int) -> None:
    packed = pack_reference(number, pieces)
    assert unpack_reference(packed) == (number, tuple(pieces))
    assert unpack_reference(renumber_reference(packed, other)) == (other, tuple(pieces))


@given(st.binary(max_size=80))
def test_any_bytes_are_a_reference_or_a_value_error(body: bytes) -> None:
    try:
        _number, pieces = unpack_reference(body)
    except ValueError:
        return
    assert sum(pieces) == struct.unpack_from("<Q", body, 8)[0]


@given(st.integers(1, 2**32 - 1))
def test_a_reference_that_claims_more_pieces_than_it_has_is_refused(count: int) -> None:
    with pytest.raises(ValueError):
        unpack_reference(struct.pack("<IIQ", 1, count, 0))


def test_a_reference_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="contradicts"):
        unpack_reference(struct.pack("<IIQQ", 1, 1, 9, 8))
