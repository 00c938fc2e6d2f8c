"""Which failures are tried again, and after how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import InternalError
from lorry.model.function import RetryPolicy
from lorry.model.records import Status
from lorry.scheduler.retry import Again, GiveUp, RetryReason, decide

POLICY = RetryPolicy(max_retries=3, backoff_coefficient=2.0, initial_delay=1.0, max_delay=3.0)


@pytest.mark.parametrize("status", [Status.ERROR, Status.TIMEOUT])
def test_errors_and_time_outs_are_retried_with_growing_delay_up_to_the_clamp(status: Status) -> None:
    answers = [decide(POLICY, used, status) for used in (1, 2, 3)]
    assert [answer.delay for answer in answers if isinstance(answer, Again)] == [1.0, 2.0, 3.0]


def test_the_attempt_after_the_last_retry_is_final() -> None:
    answer = decide(POLICY, 4, Status.ERROR)
    assert answer == GiveUp(
        reason=RetryReason.RETRIES_USED_UP, sentence="Attempt 4 raised; all of retries=3 are used up."
    )


def test_no_retries_is_its_own_reason() -> None:
    answer = decide(RetryPolicy(), 1, Status.TIMEOUT)
    assert answer.reason is RetryReason.NO_RETRIES
    assert answer.sentence == "Attempt 1 timed out; the function has no retries=."


def test_a_cancellation_is_never_retried() -> None:
    assert decide(POLICY, 1, Status.CANCELLED).reason is RetryReason.CANCELLED


@pytest.mark.parametrize("status", [Status.LOST, Status.PLATFORM])
def test_verdicts_of_the_platform_are_final(status: Status) -> None:
    assert decide(POLICY, 1, status).reason is RetryReason.NOT_RETRIABLE


@pytest.mark.parametrize("status", [Status.OK, Status.YIELD, Status.DONE])
def test_asking_about_a_success_is_a_bug(status: Status) -> None:
    with pytest.raises(InternalError, match=status.name):
        decide(POLICY, 1, status)


def test_asking_before_an_attempt_ended_is_a_bug() -> None:
    with pytest.raises(InternalError, match="0 attempts"):
        decide(POLICY, 0, Status.ERROR)


def test_a_delay_too_large_for_a_float_is_the_clamp() -> None:
    policy = RetryPolicy(max_retries=5000, backoff_coefficient=10.0, max_delay=7.0)
    answer = decide(policy, 4000, Status.ERROR)
    assert isinstance(answer, Again)
    assert answer.delay == 7.0


def test_no_initial_delay_means_no_delay_ever() -> None:
    policy = RetryPolicy(max_retries=5000, backoff_coefficient=10.0, initial_delay=0.0)
    for used in (1, 10, 4000):
        answer = decide(policy, used, Status.ERROR)
        assert isinstance(answer, Again)
        assert answer.delay == 0.0


@given(
    policy=st.builds(
        RetryPolicy,
        max_retries=st.integers(0, 20),
        backoff_coefficient=st.floats(1.0, 10.0),
        initial_delay=st.floats(0.0, 100.0),
        max_delay=st.floats(0.0, 100.0),
    ),
    used=st.integers(1, 40),
    status=st.sampled_from([Status.ERROR, Status.TIMEOUT, Status.CANCELLED, Status.LOST, Status.PLATFORM]),
)
def test_exactly_max_retries_are_granted_and_no_delay_passes_the_clamp(
    policy: RetryPolicy, used: int, status: Status
) -> None:
    answer = decide(policy, used, status)
    assert answer.sentence
    failed = status in (Status.ERROR, Status.TIMEOUT)
    assert isinstance(answer, Again) == (failed and used <= policy.max_retries)
    if isinstance(answer, Again):
        assert 0.0 <= answer.delay <= policy.max_delay
