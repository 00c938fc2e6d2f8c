"""`app.run()`: an app that lives as long as a block of this program."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lorry.errors import ExecutionError
from lorry.model.records import AppState
from lorry.sdk import display
from lorry.sdk.channel import drive
from lorry.sdk.launch import launch
from lorry.sdk.steps import Ask, Steps

if TYPE_CHECKING:
    from lorry.sdk.app import App

PRESSED_TWICE = 1.0
"""Seconds."""


class Run:
    """A context manager of both kinds."""

    def __init__(self, app: App, detach: bool) -> None:
        self._context = _started(app, detach)

    def __enter__(self) -> App:
        return self._context.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._context.__exit__(kind, problem, trace)

    async def __aenter__(self) -> App:
        import asyncio

        return await asyncio.to_thread(self._context.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        import asyncio

        return await asyncio.to_thread(self._context.__exit__, kind, problem, trace)


@contextlib.contextmanager
def _started(app: App, detach: bool) -> Iterator[App]:
    """`detach`: at the end of the block, or at Ctrl-C in it, the app is let go. An error in it stops the app."""
    if app.app_id is not None:
        raise ExecutionError(f"{app!r} runs already")
    launched = drive(launch(app, AppState.EPHEMERAL))
    app._attach(launched)
    shown = display.current()
    follower = display.LogFollower(launched.app_id, shown) if shown else None
    stop = True
    try:
        yield app
        stop = not detach
    except BaseException:
        stop = not detach or not isinstance(sys.exc_info()[1], KeyboardInterrupt)
        raise
    finally:
        if stop:
            with _uninterrupted():
                drive(_tell("app_stop", app_id=launched.app_id, reason="its program ended"))
            if follower:
                follower.close()
        else:
            drive(_tell("app_detach", app_id=launched.app_id))
        app._attach(None)


def _tell(method: str, **params: Any) -> Steps[None]:
    yield Ask(method, params)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A key that was pressed twice must not cut short how an app is stopped; a Ctrl-C that comes later may, and so may
    a third one: then the server goes on with it alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    began = time.monotonic()

    def once(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        if time.monotonic() - began > PRESSED_TWICE:
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
