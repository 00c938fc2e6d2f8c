"""One build that several callers wait for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")
MISSED_LINES = 1000
"""Of the log, that a caller who joins late still gets."""
Log = Callable[[str], None]


class SharedBuild(Generic[T]):
    """Runs while anybody waits. A caller that joins late first gets the last lines that it missed."""

    def __init__(self, make: Callable[[Log], Coroutine[Any, Any, T]], abandoned: Callable[[], None]) -> None:
        """`abandoned` is called when the last waiter left before the end; nobody may join after that."""
        self._lines: deque[str] = deque(maxlen=MISSED_LINES)
        self._listeners: dict[object, Log] = {}
        self._waiting = 0
        self._abandoned = abandoned
        self._task = asyncio.create_task(make(self._emit))

    async def wait(self, log: Log) -> T:
        """The result. Cancelling this ends the build if nobody else waits; then it is dead on return."""
        listener = object()
        self._listeners[listener] = log
        self._waiting += 1
        try:
            for line in self._lines:
                self._tell(listener, line)
            return await asyncio.shield(self._task)
        finally:
            self._listeners.pop(listener, None)
            self._waiting -= 1
            if not self._waiting and not self._task.done():
                await self._stop()

    async def _stop(self) -> None:
        self._abandoned()
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # it failed while it was being stopped: nobody is left to tell

    def _emit(self, line: str) -> None:
        self._lines.append(line)
        for listener in list(self._listeners):
            self._tell(listener, line)

    def _tell(self, listener: object, line: str) -> None:
        """A broken log (its client went away) must not end the build of the others; it hears nothing more."""
        try:
            self._listeners[listener](line)
        except Exception:
            self._listeners.pop(listener, None)
