"""The steps of `memory_backoff`: what they never exceed, and that they end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lorry.model.function import Resources, RetryPolicy
from lorry.scheduler.memory import limits, with_limit

MIB = st.integers(1, 1 << 22)
POLICIES = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 40),
    memory_backoff=st.floats(1.0, 1e300, allow_nan=False) | st.sampled_from([1.0, 1.5, 2.0]),
)


@st.composite
def limited(draw: st.DrawFn) -> Resources:
    limit = draw(MIB)
    return Resources(memory=draw(st.integers(1, limit)), memory_limit=limit)


def test_each_step_is_so_many_times_the_one_before() -> None:
    policy = RetryPolicy(max_retries=3, memory_backoff=1.5)
    assert limits(Resources(memory=50, memory_limit=101), policy, 10_000) == (101, 152, 228, 342)


def test_the_machine_ends_the_steps_and_is_tried_itself() -> None:
    policy = RetryPolicy(max_retries=9, memory_backoff=4.0)
    assert limits(Resources(memory=50, memory_limit=100), policy, 1000) == (100, 400, 1000)


def test_without_a_limit_there_are_no_steps() -> None:
    assert limits(Resources(memory=50), RetryPolicy(max_retries=9, memory_backoff=4.0), 1000) == ()


@given(limited(), POLICIES, MIB)
def test_steps_grow_begin_with_the_function_s_own_and_stay_within_retries_and_machine(
    resources: Resources, policy: RetryPolicy, machine: int
) -> None:
    found = limits(resources, policy, machine)
    assert found[0] == resources.memory_limit
    assert list(found) == sorted(set(found))
    assert len(found) <= policy.max_retries + 1
    assert all(step <= machine for step in found[1:])
    stopped_early = len(found) <= policy.max_retries
    assert not stopped_early or found[-1] >= machine or policy.memory_backoff == 1.0


@given(limited(), POLICIES, MIB)
def test_the_reservation_grows_with_the_limit_and_never_above_it(
    resources: Resources, policy: RetryPolicy, machine: int
) -> None:
    for limit in limits(resources, policy, machine):
        found = with_limit(resources, limit)
        assert found.memory_limit == limit
        assert resources.memory <= found.memory <= limit
        assert with_limit(found, limit) == found
