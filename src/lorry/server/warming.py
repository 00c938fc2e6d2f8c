"""Templates ahead of the first call."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from lorry.ids import new_id
from lorry.scheduler.inventory import Reservation
from lorry.server.container import Container
from lorry.server.folders import remove_folder
from lorry.server.services import Services

PATIENCE, LOOK = 5.0, 0.05
"""Seconds that a template lets containers pass which are being started, and between looks at them. One that loads for
minutes does not hold back the others that long."""
LONGEST = 60.0
"""Seconds until the next template is begun though this one is not ready."""


class Warming:
    """One template at a time, and containers that somebody waits for first: an import takes a whole core, and a
    deployment of many functions would otherwise keep its first call waiting for all of them."""

    def __init__(self, services: Services, booting: Callable[[], bool]) -> None:
        """`booting`: whether somebody waits for a container."""
        self._s = services
        self._booting = booting
        self._loop = asyncio.get_running_loop()
        self._wanted: deque[tuple[str, int]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, app_id: str, target: int) -> None:
        self._wanted.append((app_id, target))
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._run())

    def stop(self) -> None:
        """The server ends."""
        self._wanted.clear()
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._wanted:
            await self._let_pass()
            with contextlib.suppress(Exception):  # whatever it is, the first call will say so
                ready = await self._begin(*self._wanted.popleft())
                if ready is not None:
                    await asyncio.wait([ready], timeout=LONGEST)

    async def _let_pass(self) -> None:
        until = self._loop.time() + PATIENCE
        while self._booting() and self._loop.time() < until:
            await asyncio.sleep(LOOK)

    async def _begin(self, app_id: str, target: int) -> asyncio.Future[dict[str, Any]] | None:
        """The function's template is made for a container that will never be."""
        container_id = new_id("ct")
        nothing = Reservation(container_id=container_id, cores=0.0, memory_mib=0)
        example = Container(
            container_id=container_id,
            app_id=app_id,
            target=target,
            spec=self._s.switch.spec(target),
            token="",
            folder=self._s.folder / container_id,
            reservation=nothing,
            gpu_model="",
            started=self._s.clock.monotonic(),
            started_wall=self._s.clock.wall(),
        )
        example.folder.mkdir(mode=0o700)
        try:
            return self._s.templates.warm(example, await self._s.prepare(example))
        finally:
            remove_folder(example.folder)
