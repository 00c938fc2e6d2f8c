"""The order in two levels: each sample once, and neighbours in time are neighbours on the disk."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lorry.train.order import FEW, PIECES, Order

SIZES = st.integers(0, 3000) | st.sampled_from([PIECES * n + d for n in (1, 2, 3, 12) for d in (-1, 0, 1, 40)])


@given(SIZES, st.integers(1, 12), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_every_sample_has_one_place(total: int, windows: int, seed: int, epoch: int, shuffle: bool) -> None:
    order = Order(total, windows, seed, epoch, shuffle).block(0, total)
    assert sorted(order) == list(range(total))
    assert shuffle or order == list(range(total))


@given(SIZES.filter(bool), st.integers(1, 12), st.data())
def test_any_part_of_the_order_is_the_same_as_in_the_whole(total: int, windows: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    whole = Order(total, windows, 1, 2, shuffle=True).block(0, total)
    assert Order(total, windows, 1, 2, shuffle=True).block(start, stop) == whole[start:stop]


@given(SIZES.filter(bool), st.integers(1, 12), st.booleans(), st.data())
def test_what_comes_was_asked_for(total: int, windows: int, shuffle: bool, data: st.DataObject) -> None:
    """From any place on, but for the last few samples of a window."""
    order = Order(total, windows, 1, 2, shuffle)
    begin, step = data.draw(st.integers(0, total - 1)), data.draw(st.integers(1, total + 5))
    asked: set[int] = set()
    for start in range(begin, total, step):
        stop = min(start + step, total)
        asked.update(*order.coming(start, stop, first=start == begin))
        missing = set(order.block(start, stop)) - asked
        assert len(missing) <= FEW


def test_a_window_is_asked_for_in_whole_at_first_and_the_next_one_bit_by_bit() -> None:
    total, step = 64 * PIECES * 1000, 1000
    order = Order(total, 64, 1, 0, shuffle=True)
    window = PIECES * 1000
    assert len(order.coming(0, step, first=True)) == PIECES + 1
    asked = [order.coming(start, start + step, first=False) for start in range(step, window, step)]
    assert {len(runs) for runs in asked} == {1}
    assert order.coming(window - FEW, window - FEW + 1, first=True) == []
    seen = {sample for runs in asked for run in runs for sample in run} | set(order.coming(0, step, first=False)[0])
    assert seen == set(order.block(window, 2 * window))


def test_a_window_touches_few_pieces_from_all_over_the_data() -> None:
    total, windows = 1_000_000, 10
    order = Order(total, windows, 1, 0, shuffle=True)
    length = total // (windows * PIECES)
    for window in range(windows - 1):
        samples = order.block(window * length * PIECES, (window + 1) * length * PIECES)
        pieces = {sample // length for sample in samples}
        assert len(pieces) == PIECES
        assert max(pieces) - min(pieces) > windows * PIECES / 2
        near = sum(abs(a - b) < length for a, b in pairwise(samples))
        assert near < 4 * len(samples) / PIECES  # neighbours in the order are not neighbours in the data
    assert Order(total, windows, 1, 1, shuffle=True).block(0, 100) != order.block(0, 100)


def test_data_that_is_one_window_is_shuffled_plainly() -> None:
    order = Order(10_000, 1, 7, 3, shuffle=True)
    assert order.block(0, 5) == [7822, 2865, 6261, 4896, 7896]


def test_the_order_is_this_one_on_every_machine() -> None:
    """A checkpoint outlives versions of Lorry. Never change these numbers."""
    order = Order(100_000, 3, 7, 3, shuffle=True)
    assert order.block(0, 5) + order.block(99_995, 100_000) == [
        89786,
        64815,
        19679,
        64871,
        62966,
        31716,
        15184,
        2536,
        7134,
        36320,
    ]
