"""How far `memory_backoff` has raised the memory of each function, and what is said about it.

The limit belongs to the function, not to the input that passed it: mostly a function needs more than was declared,
and then every other input would die once at the old limit before it ran (decision 0018).
"""

from __future__ import annotations

import dataclasses

from lorry.model.function import FunctionSpec
from lorry.scheduler import memory


class MemoryGrowth:
    def __init__(self, machine_mib: int) -> None:
        self._machine = machine_mib
        self._raised: dict[int, int] = {}
        """By function: MiB of its present limit, where that is not its own."""

    def spec(self, target: int, spec: FunctionSpec) -> FunctionSpec:
        """What the next container of this function gets."""
        return self.restored(spec, self._raised.get(target))

    def restored(self, spec: FunctionSpec, limit: int | None) -> FunctionSpec:
        """The spec as a container with this limit (MiB) had it."""
        if limit is None:
            return spec
        return dataclasses.replace(spec, resources=memory.with_limit(spec.resources, limit))

    def is_small(self, target: int, limit: int | None) -> bool:
        """Whether a container with this limit has less than the next one would get."""
        return limit is not None and limit < self._raised.get(target, 0)

    def adopted(self, target: int, spec: FunctionSpec, limit: int | None) -> None:
        """A container of an earlier life of the server has this limit: what was learnt then still holds."""
        if limit is not None and limit > (spec.resources.memory_limit or limit):
            self._raised[target] = max(limit, self._raised.get(target, 0))

    def passed(self, target: int, spec: FunctionSpec, limit: int) -> str | None:
        """A container passed this limit. A sentence if the next ones get more; None if this was the last step."""
        steps = memory.limits(spec.resources, spec.retries, self._machine)
        larger = next((step for step in steps if step > limit), None)
        if larger is None:
            return None
        self._raised[target] = max(larger, self._raised.get(target, 0))
        return (
            f"A container of {spec.tag} passed its memory limit of {limit} MiB: the next ones get "
            f"{self._raised[target]} MiB (memory_backoff={spec.retries.memory_backoff:g})."
        )

    def story(self, spec: FunctionSpec, limit: int) -> str:
        """For the error of the last attempt: what was tried. Empty where there was nothing to try."""
        if spec.retries.memory_backoff <= 1:
            return ""
        steps = memory.limits(spec.resources, spec.retries, self._machine)
        tried = [str(step) for step in steps if step <= limit]
        if limit >= self._machine:
            end = f"this machine has {self._machine} MiB"
        else:
            end = f"max_retries={spec.retries.max_retries}"
        return f". memory_backoff={spec.retries.memory_backoff:g} tried {', '.join(tried)} MiB and ended there: {end}"

    def forget(self, target: int) -> None:
        self._raised.pop(target, None)
