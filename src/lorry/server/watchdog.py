"""Limits that no part of the kernel holds for us: scratch space, and memory where there are no control groups.

Looked at once a second, so a container may be over by what it writes in that time. What passes its limit is killed,
and its inputs end with the limit, the figure and the parameter."""

from __future__ import annotations

import asyncio
import time
import traceback

from lorry.sandbox.scratch import scratch_mib
from lorry.server.container import Container
from lorry.server.fleet import Fleet

INTERVAL = 1.0
SHARE = 10
"""A look that took t seconds is followed by a pause of at least SHARE * t: a tree of millions of files must not keep
a core busy."""


class Watchdog:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self.look()
            except Exception:  # a fault in one look must not end all later ones
                traceback.print_exc()
            await asyncio.sleep(max(INTERVAL, SHARE * (time.monotonic() - began)))

    async def look(self) -> None:
        """At every container that has such a limit."""
        for container in list(self._fleet.containers.values()):
            if container.process is None or not container.alive or container.over_limit:
                continue
            resources = container.spec.resources
            if resources.memory_limit is not None:
                self._look_at_memory(container, resources.memory_limit)
            if resources.ephemeral_disk is not None:
                await self._look_at_disk(container, resources.ephemeral_disk)

    def _look_at_memory(self, container: Container, limit: int) -> None:
        """Where a control group holds the limit this never sees more."""
        assert container.process is not None
        usage = container.process.usage()
        container.peak_memory = max(container.peak_memory, usage.peak_memory)
        if usage.memory > limit:
            container.over_memory = True
            container.process.kill()

    async def _look_at_disk(self, container: Container, limit: int) -> None:
        assert container.process is not None
        found = await asyncio.to_thread(scratch_mib, str(container.folder), container.process.pid)
        if found > limit and container.alive:
            container.scratch = found
            container.process.kill()
