"""Boots that fail: what the inputs hear that wait for the container, and how often it is tried."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lorry.clock import Clock
from lorry.lifecycle.container import ContainerEvent, ContainerState
from lorry.model.function import SLICED_START, FunctionSpec
from lorry.model.records import Status
from lorry.server.container import Container
from lorry.server.switch import Switch

MAX_BOOT_DEATHS = 3
"""Containers of a function that may die while booting, one after the other, before its inputs are given up."""


class Boots:
    def __init__(self, clock: Clock, switch: Switch, kill: Callable[[str, str], None]) -> None:
        """`kill(container id, reason)`."""
        self._clock = clock
        self._switch = switch
        self._kill = kill
        self._loop = asyncio.get_running_loop()
        self._deaths: dict[int, int] = {}
        self.failures: dict[int, tuple[int, float]] = {}
        """By function: how many in a row, and when the last was."""

    def watch(self, container: Container) -> None:
        limit = container.spec.effective_startup_timeout
        container.timers.append(self._loop.call_later(limit, self._overdue, container))

    def succeeded(self, target: int) -> None:
        self._deaths.pop(target, None)
        self.failures.pop(target, None)

    forget = succeeded

    def refused(self, container: Container, text: str) -> None:
        """It could not be started."""
        self._count(container.target)
        container.reason = text
        if not container.spec.is_sandbox:
            self._fail_waiting(container, Status.PLATFORM, text)

    def raised(self, container: Container, failure: str) -> None:
        """The user's module or an enter hook did: reported once to everything that waits."""
        if container.state is ContainerState.BOOTING:
            self._failed(container, "its import or @enter raised")
            self._fail_waiting(container, Status.ERROR, failure)

    def _overdue(self, container: Container) -> None:
        if container.state is not ContainerState.BOOTING:
            return
        text = f"FunctionTimeoutError: {too_slow(container.spec)}"
        self._failed(container, text)
        self._fail_waiting(container, Status.TIMEOUT, text)
        self._kill(container.container_id, text)

    def died(self, container: Container, text: str) -> None:
        """Nobody told it to: a crash in an import, or out of memory. Tried again a few times."""
        count = self._deaths.get(container.target, 0) + 1
        self._deaths[container.target] = count
        self._count(container.target)
        if count >= MAX_BOOT_DEATHS:
            self._deaths.pop(container.target)
            text = f"{text}. It died {count} times while importing or in @enter"
            self._fail_waiting(container, Status.LOST, text)

    def _failed(self, container: Container, reason: str) -> None:
        container.machine.fire(ContainerEvent.BOOT_FAILED, self._clock.monotonic())
        container.reason = reason
        self._count(container.target)

    def _count(self, target: int) -> None:
        count, _ = self.failures.get(target, (0, 0.0))
        self.failures[target] = (count + 1, self._clock.monotonic())

    def _fail_waiting(self, container: Container, status: Status, text: str) -> None:
        self._switch.perform(self._switch.dispatcher.fail_waiting(container.target, status, text))


def too_slow(spec: FunctionSpec) -> str:
    """Of a start that took longer than it may."""
    what, default = "importing the code and running @enter", "the function's timeout"
    if spec.resumable is not None:
        what, default = "importing the code", f"the timeout of a slice, but at least {SLICED_START:g} s"
    return f"{what} took longer than {spec.effective_startup_timeout:g} s (startup_timeout, by default {default})"
