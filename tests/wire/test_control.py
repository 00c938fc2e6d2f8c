"""Control messages over frames: any split, any interleaving; what is too long or no JSON is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry import errors
from lorry.wire.control import BODY, Assembler, encode, encode_error, raise_error
from lorry.wire.frames import HEADER, HEADER_SIZE, MAX_FRAME, Flag, Kind

values = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def feed(assembler: Assembler, frame: bytes) -> Any:
    kind, flags, _, _, number, *_ = HEADER.unpack_from(frame)
    return assembler.feed(kind, flags, number, frame[HEADER_SIZE:])


@given(values)
def test_a_short_message_is_one_frame(value: Any) -> None:
    (frame,) = encode(Kind.REQUEST, 3, value)
    assert feed(Assembler(), frame) == value


@pytest.mark.parametrize("length", [BODY - 3, BODY - 2, BODY - 1, BODY, 3 * BODY, 200_000])
def test_a_long_message_comes_whole_after_its_last_frame(length: int) -> None:
    frames = encode(Kind.REPLY, 3, "x" * length)
    assert all(len(frame) <= MAX_FRAME for frame in frames)
    assembler = Assembler()
    *early, last = [feed(assembler, frame) for frame in frames]
    assert early == [None] * len(early)
    assert last == "x" * length


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_messages_of_several_numbers_may_interleave_and_be_split_anywhere(sizes: list[int], rng: random.Random) -> None:
    assembler = Assembler()
    texts = {number: b"[" + b"1," * size + b"1]" for number, size in enumerate(sizes)}
    left = dict(texts)
    found = {}
    while left:
        number = rng.choice(list(left))
        cut = rng.randint(1, len(left[number]))
        part, rest = left[number][:cut], left[number][cut:]
        if rest:
            left[number] = rest
        else:
            del left[number]
        value = assembler.feed(Kind.EVENT, Flag.MORE if rest else 0, number, part)
        if not rest:
            found[number] = value
        else:
            assert value is None
    assert found == {number: [1] * (size + 1) for number, size in enumerate(sizes)}


def test_the_unfinished_messages_of_one_peer_are_bounded() -> None:
    assembler = Assembler(limit=1000)
    assert assembler.feed(Kind.REQUEST, Flag.MORE, 1, b"x" * 900) is None
    with pytest.raises(ValueError, match="1000 bytes"):
        assembler.feed(Kind.REQUEST, Flag.MORE, 2, b"x" * 200)


def test_a_finished_message_makes_room_for_the_next() -> None:
    assembler = Assembler(limit=1000)
    for number in range(10):
        assert assembler.feed(Kind.REQUEST, Flag.MORE, number, b"[" + b" " * 500) is None
        assert assembler.feed(Kind.REQUEST, 0, number, b"]") == []


def test_too_many_unfinished_messages_are_refused() -> None:
    assembler = Assembler()
    with pytest.raises(ValueError):
        for number in range(70):
            assembler.feed(Kind.REQUEST, Flag.MORE, number, b"[")


@given(st.binary(max_size=30))
def test_any_bytes_are_json_or_a_value_error(body: bytes) -> None:
    try:
        Assembler().feed(Kind.REQUEST, 0, 1, body)
    except ValueError:
        pass


def test_json_that_nests_too_deep_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nests"):
        Assembler().feed(Kind.REQUEST, 0, 1, b"[" * 60_000)


@pytest.mark.parametrize("cls", errors.BY_NAME.values())
def test_every_error_of_lorrys_own_keeps_its_class(cls: type[errors.Error]) -> None:
    (frame,) = encode_error(1, cls("what happened"))
    assert HEADER.unpack_from(frame)[2] == 1
    with pytest.raises(cls, match="^what happened$"):
        raise_error(feed(Assembler(), frame))


def test_any_other_error_is_lorrys_fault() -> None:
    (frame,) = encode_error(1, KeyError("x"))
    with pytest.raises(errors.InternalError, match="KeyError: 'x'"):
        raise_error(feed(Assembler(), frame))
