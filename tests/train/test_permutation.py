"""The order of samples: each once, the same everywhere, and shuffled indeed."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.train.permutation import Permutation

SEEDS = st.integers(-(2**70), 2**70)
EDGES = [0, 1, 2, 3, 4, 5, 97, 101, *(2**k + d for k in (6, 7, 10, 12) for d in (-1, 0, 1))]


@given(st.integers(0, 3000) | st.sampled_from(EDGES), SEEDS, st.integers(0, 100))
def test_every_sample_has_one_place(size: int, seed: int, epoch: int) -> None:
    assert sorted(Permutation(size, seed, epoch).block(0, size)) == list(range(size))


@pytest.mark.parametrize("size", EDGES)
def test_every_sample_has_one_place_at_edges(size: int) -> None:
    assert sorted(Permutation(size, 1, 2).block(0, size)) == list(range(size))


@given(st.integers(1, 2**62), SEEDS, st.data())
def test_with_numpy_and_without_the_order_is_the_same(size: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = min(size, start + 200)
    permutation = Permutation(size, seed, 5)
    order = permutation.block(start, stop)
    assert order == [permutation[place] for place in range(start, stop)]
    assert all(0 <= sample < size for sample in order)


def test_without_numpy_blocks_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with_numpy = Permutation(10_007, 3, 4).block(5, 5000)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert Permutation(10_007, 3, 4).block(5, 5000) == with_numpy


@pytest.mark.parametrize(
    ("size", "seed", "epoch", "first"),
    [
        (10, 0, 0, [1, 8, 3, 6, 4, 9, 7, 2, 0, 5]),
        (10, 0, 1, [6, 7, 4, 5, 1, 0, 9, 3, 8, 2]),
        (4096, 7, 3, [2418, 3329, 1683, 2341, 3478, 2321, 1967, 2970, 894, 3471]),
        (10_000, 7, 3, [7822, 2865, 6261, 4896, 7896, 6895, 4375, 3510, 2616, 2278]),
        (2**40 + 1, -5, 12, [687436313198, 892279968202, 125662077901, 652466323838, 960733142526]),
    ],
)
def test_the_order_is_this_one_on_every_machine(size: int, seed: int, epoch: int, first: list[int]) -> None:
    """A checkpoint outlives versions of Lorry, Python and NumPy. Never change these numbers."""
    permutation = Permutation(size, seed, epoch)
    assert [permutation[place] for place in range(len(first))] == first


@pytest.mark.parametrize("size", [10, 33, 1000])
def test_every_sample_comes_about_equally_often_at_the_first_place_and_at_the_last(size: int) -> None:
    """Chi-square over 30 epochs per sample, five standard deviations."""
    epochs = 30 * size
    for place in (0, size - 1):
        seen = [0] * size
        for epoch in range(epochs):
            seen[Permutation(size, 11, epoch)[place]] += 1
        chi_square = sum((count - 30) ** 2 / 30 for count in seen)
        assert abs(chi_square - (size - 1)) < 5 * (2 * (size - 1)) ** 0.5


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_order_of_few_samples_is_equally_likely(size: int) -> None:
    """Chi-square over 20 epochs per order, five standard deviations."""
    seen = Counter(tuple(Permutation(size, 11, epoch).block(0, size)) for epoch in range(20 * factorial(size)))
    assert len(seen) == factorial(size)
    chi_square = sum((count - 20) ** 2 / 20 for count in seen.values())
    assert abs(chi_square - factorial(size) + 1) < 5 * (2 * factorial(size)) ** 0.5


def test_neighbours_do_not_stay_neighbours() -> None:
    order = Permutation(100_000, 0, 0).block(0, 100_000)
    near = sum(abs(a - b) < 100 for a, b in pairwise(order))
    assert 100 < near < 300  # 200 expected


def test_a_place_outside_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        Permutation(3, 0, 0)[3]
