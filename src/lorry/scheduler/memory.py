"""`Retries(memory_backoff=)`: which memory limit the containers of a function get once one of them passed its own."""

from __future__ import annotations

import dataclasses
import math

from lorry.model.function import Resources, RetryPolicy


def limits(resources: Resources, policy: RetryPolicy, machine_mib: int) -> tuple[int, ...]:
    """In MiB, in the order in which they are tried: the function's own first, each `memory_backoff` times the one
    before, at most `max_retries` more and none above the machine's memory. Empty without a limit."""
    if resources.memory_limit is None:
        return ()
    found = [resources.memory_limit]
    while len(found) <= policy.max_retries:
        larger = math.ceil(min(found[-1] * policy.memory_backoff, machine_mib))
        if larger <= found[-1]:
            break
        found.append(larger)
    return tuple(found)


def with_limit(resources: Resources, limit: int) -> Resources:
    """The same with another memory limit (MiB); the reservation keeps its proportion to it."""
    before = resources.memory_limit
    if before is None or before == limit:
        return resources
    return dataclasses.replace(
        resources, memory=min(limit, math.ceil(resources.memory * limit / before)), memory_limit=limit
    )
