"""Whether a failed attempt is tried again, and when.

Only what the user's own policy answers for: errors and time-outs. A container that dies under an input is
the platform's failure; the dispatcher re-queues that input at once, up to eight deaths of one that ran
alone, and no retry is used up. A generator that has delivered a value is not restarted, so nobody asks here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from lorry.errors import InternalError
from lorry.model import selection as sel
from lorry.model.function import RetryPolicy
from lorry.model.records import Selection, Status


class RetryReason(StrEnum):
    RETRIES_LEFT = "retries_left"
    RETRIES_USED_UP = "retries_used_up"
    NO_RETRIES = "no_retries"
    """The function has no `retries=`."""
    CANCELLED = "cancelled"
    NOT_RETRIABLE = "not_retriable"
    """The platform's own verdict (LOST, PLATFORM): another attempt would end the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Queue the input again, `delay` seconds from now."""

    delay: float
    reason: RetryReason
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The outcome at hand is final."""

    reason: RetryReason
    sentence: str


_FAILURES = {Status.ERROR: "raised", Status.TIMEOUT: "timed out"}
_VERDICTS = {Status.LOST: "lost its container too often", Status.PLATFORM: "was refused by the platform"}


def decide(policy: RetryPolicy, attempts_used: int, status: Status) -> Again | GiveUp:
    """`attempts_used` counts the attempts that have ended in ERROR or TIMEOUT, this one included (so ≥ 1)."""
    if status is Status.CANCELLED:
        return GiveUp(reason=RetryReason.CANCELLED, sentence="A cancelled input is never retried.")
    if status in _VERDICTS:
        sentence = f"The input {_VERDICTS[status]}; that is not retried."
        return GiveUp(reason=RetryReason.NOT_RETRIABLE, sentence=sentence)
    if status not in _FAILURES or attempts_used < 1:
        raise InternalError(f"retry asked about status {status.name} after {attempts_used} attempts")
    failed = f"Attempt {attempts_used} {_FAILURES[status]}"
    if policy.max_retries == 0:
        return GiveUp(reason=RetryReason.NO_RETRIES, sentence=f"{failed}; the function has no retries=.")
    if attempts_used > policy.max_retries:
        sentence = f"{failed}; all of retries={policy.max_retries} are used up."
        return GiveUp(reason=RetryReason.RETRIES_USED_UP, sentence=sentence)
    delay = delay_after(policy, attempts_used)
    sentence = f"{failed}; retry {attempts_used} of {policy.max_retries} starts in {delay:g} s."
    return Again(delay=delay, reason=RetryReason.RETRIES_LEFT, sentence=sentence)


def grants(
    policy: RetryPolicy, attempts: Mapping[int, int], failed: Selection, status: Status
) -> Iterator[tuple[int, Selection, float]]:
    """(attempts used, inputs, delay) of those that are tried again. Inputs that failed together may have failed
    before in different numbers; equal ones stay together."""
    if not policy.max_retries:
        return
    groups: dict[int, list[int]] = {}
    for index in sel.indices(failed):
        groups.setdefault(attempts.get(index, 0) + 1, []).append(index)
    for used, members in groups.items():
        decision = decide(policy, used, status)
        if isinstance(decision, Again):
            yield used, sel.from_indices(members), decision.delay


def delay_after(policy: RetryPolicy, attempts_used: int) -> float:
    """Seconds between the end of attempt `attempts_used` and the start of the next one."""
    try:
        delay = policy.initial_delay * policy.backoff_coefficient ** (attempts_used - 1)
    except OverflowError:  # 2.0 ** 1024: far above any max_delay
        return policy.max_delay if policy.initial_delay else 0.0
    return min(delay, policy.max_delay)
