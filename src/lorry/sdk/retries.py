"""`lorry.Retries`: how often and how soon a failed input is tried again."""

from __future__ import annotations

import math

from lorry.errors import InvalidError
from lorry.model.function import RetryPolicy


class Retries:
    """Attempt n+1 starts `initial_delay * backoff_coefficient**(n-1)` seconds after attempt n failed.

    Delays are in seconds and never longer than `max_delay`; `backoff_coefficient` is at least 1.

    `memory_backoff` (at least 1) is for a function with a memory limit: once a container has passed that, the next
    ones get so many times the limit and reservation, at most `max_retries` times and up to the machine's memory.
    """

    def __init__(
        self,
        *,
        max_retries: int,
        backoff_coefficient: float = 2.0,
        initial_delay: float = 1.0,
        max_delay: float = 60.0,
        memory_backoff: float = 1.0,
    ) -> None:
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
            raise InvalidError(f"max_retries={max_retries!r} must be a whole number of at least 0")
        if not _is_number(backoff_coefficient) or not backoff_coefficient >= 1.0:
            raise InvalidError(f"backoff_coefficient={backoff_coefficient!r} must be a number of at least 1")
        if not _is_number(initial_delay) or not initial_delay >= 0:
            raise InvalidError(f"initial_delay={initial_delay!r} must be a number of at least 0 seconds")
        if not _is_number(max_delay) or not max_delay >= initial_delay:
            raise InvalidError(f"max_delay={max_delay!r} must be at least initial_delay={initial_delay!r}")
        if not _is_number(memory_backoff) or not 1.0 <= memory_backoff < math.inf:
            raise InvalidError(f"memory_backoff={memory_backoff!r} must be a number of at least 1, such as 2.0")
        if memory_backoff > 1.0 and not max_retries:
            raise InvalidError(f"memory_backoff={memory_backoff!r} has no effect with max_retries=0")
        self.policy = RetryPolicy(
            max_retries=max_retries,
            backoff_coefficient=float(backoff_coefficient),
            initial_delay=float(initial_delay),
            max_delay=float(max_delay),
            memory_backoff=float(memory_backoff),
        )

    def __repr__(self) -> str:
        p = self.policy
        return (
            f"Retries(max_retries={p.max_retries}, backoff_coefficient={p.backoff_coefficient}, "
            f"initial_delay={p.initial_delay}, max_delay={p.max_delay}, memory_backoff={p.memory_backoff})"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
