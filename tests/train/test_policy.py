"""When to save, when to yield, what to keep: the formulae and what must hold for all numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import InvalidError
from lorry.train.options import options
from lorry.train.policy import (
    Costs,
    Every,
    Kept,
    can_progress,
    interval,
    mean_seconds_to_interruption,
    must_yield,
    nearly_always,
    retained,
    shortest,
)

HOUR = 3600.0
short = st.floats(0.001, 100)
costs = st.builds(Costs, start=short, step=short, stall=short, persist=short, exit=short)
limits = st.floats(1, 100_000)


def test_how_often_is_auto_steps_or_a_time() -> None:
    assert Every.parse("auto") == Every()
    assert Every.parse(200) == Every(steps=200)
    assert Every.parse("1h30m") == Every(seconds=5400)
    for wrong in (0, -1, True, 2.5, None, "often", "0s", "5 parsecs", ""):
        with pytest.raises(InvalidError, match="every="):
            Every.parse(wrong)
    with pytest.raises(InvalidError, match="keep_every=3600: give a time"):
        options(every=None, keep_last=None, keep_every=3600, rng="state", seed=0, policy=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stall", "hours", "expected"), [(0.5, 0.5, 42), (0.5, 24, 294), (6.3, 1, 213), (148.8, 4, 2070)]
)
def test_young_s_interval(stall: float, hours: float, expected: float) -> None:
    assert round(interval(stall, hours * HOUR, persist=0, step=0)) == expected


@given(stall=short, mean=st.floats(60, 1e6), persist=short, step=short, factor=st.floats(0.1, 10))
def test_no_other_allowed_interval_costs_less(
    stall: float, mean: float, persist: float, step: float, factor: float
) -> None:
    best = interval(stall, mean, persist=persist, step=step)
    assert best >= max(persist, step)
    other = max(best * factor, persist, step)
    costs = [stall / w + w / (2 * mean) for w in (best, other)]
    assert costs[0] <= costs[1] * (1 + 1e-9)


@given(st.integers(0, 1000), st.floats(0, 1e8))
def test_interruptions_shorten_and_quiet_hours_lengthen_the_mean(count: int, observed: float) -> None:
    mean = mean_seconds_to_interruption(count, observed)
    assert mean_seconds_to_interruption(0, 0) == 24 * HOUR
    assert mean_seconds_to_interruption(count + 1, observed) < mean
    assert mean_seconds_to_interruption(count, observed + HOUR) > mean


@given(costs, limits)
def test_a_slice_that_follows_the_rule_saves_in_time_and_makes_progress(costs: Costs, limit: float) -> None:
    """The rule is asked after the start and after each step; each step, save and exit takes all of its estimate."""
    if not can_progress(limit, costs).yes:
        return
    left, steps = limit - costs.start, 0
    while not must_yield(left, limit, costs).yes and steps < 1000:
        left -= costs.step
        steps += 1
    assert steps >= 1
    assert left - costs.stall - costs.persist - costs.exit >= 0


@given(costs, limits)
def test_a_slice_without_room_says_why(costs: Costs, limit: float) -> None:
    decision = can_progress(limit, costs)
    assert decision.yes == (shortest(costs) <= limit)
    assert " = " in decision.reason
    assert decision.yes or "cannot make one step" in decision.reason


@given(st.lists(short, min_size=20))
def test_nearly_always_covers_99_of_100(samples: list[float]) -> None:
    limit = nearly_always(samples)
    assert sum(sample <= limit for sample in samples) >= 0.99 * len(samples)
    assert limit in samples


def test_few_samples_get_three_sigma() -> None:
    assert nearly_always([]) == 0
    assert nearly_always([1.0, 3.0]) == 2 + 3 * 1
    assert math.isclose(nearly_always([2.0] * 19), 2)


ages = st.lists(st.floats(0, 50_000), max_size=40).map(
    lambda gaps: [Kept(f"m{i}", i, sum(gaps[: i + 1])) for i in range(len(gaps))]
)


@given(ages, st.integers(1, 5), st.one_of(st.none(), st.floats(60, 100_000)))
def test_retention_keeps_the_newest_and_one_of_each_period(
    checkpoints: list[Kept], last: int, every: float | None
) -> None:
    kept = retained(checkpoints, keep_last=last, keep_every=every)
    assert kept[-last:] == checkpoints[-last:]
    assert kept == [checkpoint for checkpoint in checkpoints if checkpoint in kept], "in order"
    if every is None:
        assert len(kept) <= last
    else:
        assert {c.created_at // every for c in kept} == {c.created_at // every for c in checkpoints}


@given(ages, st.integers(1, 5), st.one_of(st.none(), st.floats(60, 100_000)))
def test_retention_step_by_step_keeps_what_retention_of_all_keeps(
    checkpoints: list[Kept], last: int, every: float | None
) -> None:
    kept: list[Kept] = []
    for checkpoint in checkpoints:
        kept = retained([*kept, checkpoint], keep_last=last, keep_every=every)
    assert kept == retained(checkpoints, keep_last=last, keep_every=every)
