"""Sandboxes: containers whose program is the user's own, and that take no inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lorry.clock import Clock
from lorry.lifecycle.container import ContainerEvent
from lorry.sandbox.interface import Exit
from lorry.server.container import Container

TIMED_OUT = 124
"""Exit code of a sandbox, or of a program in it, whose `timeout` was over; as that of timeout(1)."""


class UserSandboxes:
    def __init__(self, clock: Clock, kill: Callable[[str, str], None]) -> None:
        """`kill(container id, reason)`."""
        self._clock = clock
        self._kill = kill
        self._loop = asyncio.get_running_loop()

    def runs(self, container: Container) -> None:
        """Its program is executed: it needs no boot, and ends by itself, or by its `timeout`."""
        if container.machine.allows(ContainerEvent.BOOTED):
            container.machine.fire(ContainerEvent.BOOTED, self._clock.monotonic())
        container.up.set()
        left = container.started_wall + container.spec.timeout - self._clock.wall()
        container.timers.append(self._loop.call_later(max(0.0, left), self._overdue, container))

    def adopted(self, container: Container) -> None:
        """It ran while the server was away."""
        container.machine.fire(ContainerEvent.ADOPTED_BOOTING, self._clock.monotonic())
        self.runs(container)

    def _overdue(self, container: Container) -> None:
        if container.alive and container.code is None and container.process is not None:
            container.code = TIMED_OUT
            self._kill(container.container_id, f"it ran longer than its timeout of {container.spec.timeout:g} s")

    def ended(self, container: Container, ended: Exit) -> None:
        container.code = ended.code if container.code is None else container.code
        container.reason = container.reason or container.scratch_text or ended.describe()
