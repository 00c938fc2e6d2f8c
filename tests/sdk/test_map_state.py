"""`.map` without I/O against a model: whatever order results come in, each input has one output."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.errors import CallCancelledError, InternalError
from lorry.model import selection as sel
from lorry.model.records import Selection, Status
from lorry.sdk.map_state import MAX_CHUNK, MapState, Outcome
from lorry.wire import pickling
from lorry.wire.codec import to_json
from lorry.wire.endpoint import Frame
from lorry.wire.failures import capture
from lorry.wire.frames import NO_CALL, Flag, Kind, pack_selection


def result(start: int, covered: Selection, values: list[Any] | Exception, micros: int = 100) -> tuple[Frame, list[Any]]:
    failed = isinstance(values, Exception)
    body = to_json(capture(values)).encode() if isinstance(values, Exception) else pickling.dumps(values)[0]
    flags = Flag.SELECT | (0 if failed else Flag.BATCH)
    status = Status.ERROR if failed else Status.OK
    count = sel.count(covered)
    frame = Frame(
        Kind.RESULT, flags, status, 0, start, 0, NO_CALL, micros * count, count, pack_selection(covered) + body
    )
    return frame, [body]


def pieces_of(rng: random.Random, count: int) -> list[Selection]:
    """A chunk's indices in random parts."""
    indices = list(range(count))
    rng.shuffle(indices)
    parts = []
    while indices:
        size = rng.randint(1, len(indices))
        parts.append(sel.from_indices(indices[:size]))
        del indices[:size]
    return parts


def test_runs_travel_singly_however_quick_they_are() -> None:
    state = MapState(ordered=True, singly=True)
    for start in range(50):
        state.add(state.chunk_size, (b"x", []))
        state.take(*result(start, ((0, 1),), [None], micros=1))
        assert state.chunk_size == 1


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 8), min_size=1, max_size=8), st.booleans())
def test_every_input_has_exactly_one_output(rng: random.Random, sizes: list[int], ordered: bool) -> None:
    state = MapState(ordered=ordered)
    deliveries: list[tuple[int, Selection, bool]] = []
    outputs: list[Any] = []
    to_send = list(sizes)
    failing: set[int] = set()
    while to_send or deliveries or not state.exhausted:
        action = rng.random()
        if to_send and (action < 0.4 or not deliveries):
            chunk = state.add(to_send.pop(0), (b"payload", []))
            for part in pieces_of(rng, chunk.count):
                deliveries.append((chunk.start, part, rng.random() < 0.2))
        elif deliveries:
            start, part, fails = deliveries.pop(rng.randrange(len(deliveries)))
            numbers = [start + index for index in sel.indices(part)]
            if fails:
                failing.update(numbers)
            content = ValueError(str(start)) if fails else numbers
            for _ in range(rng.choice([1, 1, 2])):  # a lost acknowledgement: it comes again
                assert state.take(*result(start, part, content)) == part
        if not to_send:
            state.exhausted = True
        if rng.random() < 0.5:
            for due in state.outputs():
                outputs += due
    for due in state.outputs():
        outputs += due
    assert state.done
    total = sum(sizes)
    assert len(outputs) == total
    if ordered:
        for number, value in enumerate(outputs):
            assert (type(value) is Outcome) == (number in failing)
            assert type(value) is Outcome or value == number
    else:
        assert sorted(v for v in outputs if type(v) is not Outcome) == sorted(set(range(total)) - failing)
    assert state.unacknowledged() == []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 100_000), st.integers(1, 200))
def test_back_pressure_bounds_what_is_under_way(micros: int, size: int, rounds: int) -> None:
    state = MapState(ordered=True)
    for _ in range(rounds):
        while state.may_send:
            chunk = state.add(state.chunk_size, (b"x" * size, []))
            assert chunk.count <= MAX_CHUNK
            under_way = state.sent - state.consumed
            assert under_way <= max(9 * state._cores, 65 * state.chunk_size) + chunk.count
            last = chunk
        state.take(*result(last.start, ((0, last.count),), list(range(last.count)), micros))
        if state.finished > 3:
            break
    assert not state.may_send or state.sent - state.consumed < max(8 * state._cores, 65 * state.chunk_size)


def test_the_first_chunks_are_single_inputs_and_grow_with_their_speed() -> None:
    state = MapState(ordered=True)
    assert state.chunk_size == 1
    chunk = state.add(1, (b"x" * 10, []))
    state.take(*result(chunk.start, ((0, 1),), [0], micros=1))
    assert state.chunk_size > 1000
    slow = MapState(ordered=True)
    chunk = slow.add(1, (b"x", []))
    slow.take(*result(chunk.start, ((0, 1),), [0], micros=2_000_000))
    assert slow.chunk_size == 1


def test_large_inputs_keep_chunks_in_one_frame() -> None:
    state = MapState(ordered=True)
    chunk = state.add(1, (b"x" * 20_000, []))
    state.take(*result(chunk.start, ((0, 1),), [0], micros=1))
    assert state.chunk_size == 2


def test_only_unacknowledged_chunks_are_sent_again() -> None:
    state = MapState(ordered=True)
    first, second, third = (state.add(2, (b"p", [])) for _ in range(3))
    state.acknowledged(first.start)
    state.take(*result(second.start, ((0, 1),), [2]))
    assert state.unacknowledged() == [third]
    state.acknowledged(12345)


def test_a_cancelled_map_says_so() -> None:
    state = MapState(ordered=True)
    state.add(1, (b"p", []))
    with pytest.raises(CallCancelledError):
        state.take(Frame(Kind.RESULT, 0, Status.CANCELLED, 0, 0, 0, NO_CALL, 0, 0, b""), [b""])


def test_results_that_cannot_be_read_fail_their_own_inputs() -> None:
    state = MapState(ordered=True)
    state.add(2, (b"p", []))
    frame, _ = result(0, ((0, 2),), [1, 2])
    state.take(frame, [b"nonsense"])
    state.exhausted = True
    assert [type(value) for part in state.outputs() for value in part] == [Outcome, Outcome]
    assert state.done


@pytest.mark.parametrize("values", [[], [1], [1, 2, 3]])
def test_a_container_that_miscounts_does_not_hang_the_map(values: list[int]) -> None:
    state = MapState(ordered=True)
    state.add(2, (b"p", []))
    state.take(*result(0, ((0, 2),), values))
    state.exhausted = True
    problems = [value.problem for part in state.outputs() for value in part]
    assert [type(problem) for problem in problems] == [InternalError] * 2
    assert state.done
