"""How an attempt is told to end at its next safe point, and how it ends; outside the platform: SIGTERM and SIGINT."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from lorry.train.pace import Pace
from lorry.train.policy import Decision

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AT_ONCE = "at once"
"""Wanted by who is in a hurry, by a second signal: nothing more is saved, the newest checkpoint has to do."""


class Asked(Protocol):
    wanted: str | None
    """Why the attempt has to end at its next safe point. Every `run.step()` looks at it."""


class Ending(Protocol):
    """Of one attempt."""

    @property
    def asked(self) -> Asked: ...

    latest: float
    """Monotonic: the first safe point after it is the last."""

    def begin(self, ended: Callable[[bool], None]) -> None:
        """The state is restored: from now on it ends at a safe point. `ended` is to be called once the program has
        ended all the same, with whether that was without an exception."""
        ...

    def state(self) -> dict[str, Any]:
        """What the next attempt has to know."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Of the attempt before, whose checkpoint this one goes on from."""
        ...

    def look_again(self, pace: Pace, in_flight: float | None) -> None:
        """Work out `latest`. `in_flight`: seconds for which a save has been under way; None if there is none."""
        ...

    def due(self, now: float, pace: Pace, in_flight: float | None) -> Decision:
        """Whether this safe point has to be the last."""
        ...

    def end(self, pace: Pace) -> BaseException:
        """Everything is saved. What to raise once `over` is called."""
        ...

    def over(self) -> None:
        """There will be no more safe points."""
        ...


class Signals:
    """Handlers for SIGTERM and SIGINT, in this process and not in its forks."""

    def __init__(self, act: Callable[[int, Any, FrameType | None], None]) -> None:
        """`act` gets the signal, what was there before us, and the frame."""
        self._act = act
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()

    def install(self) -> None:
        """Only on the main thread, where Python allows it. A signal that was ignored (nohup) stays ignored."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """What was there before, unless somebody has put a handler of their own over ours."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, before in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, before)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if number == signal.SIGINT and _makes_batches():
            return  # Ctrl-C reaches its parent too, which needs it up to the safe point, and ends it then
        if os.getpid() != self._pid:  # a fork: it has nothing to save
            signal.signal(number, before if callable(before) else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._act(number, before, frame)


def _makes_batches() -> bool:
    """Whether this process is a worker of torch's DataLoader."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


class ProgramEnd:
    """`Ending` of a program of its own: nothing limits its time, and a signal ends it."""

    latest = float("inf")

    def __init__(self) -> None:
        self.wanted: str | None = None
        self._received = signal.SIGTERM
        self._signals = Signals(self._signalled)
        self._exit: Callable[[], None] = lambda: None

    @property
    def asked(self) -> Asked:
        return self

    def begin(self, ended: Callable[[bool], None]) -> None:
        self._signals.install()
        self._exit = lambda: ended(getattr(sys, "last_value", None) is None)
        atexit.register(self._exit)

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass

    def look_again(self, pace: Pace, in_flight: float | None) -> None:
        pass

    def due(self, now: float, pace: Pace, in_flight: float | None) -> Decision:
        return Decision(self.wanted is not None, f"{self._received.name} was received")

    def end(self, pace: Pace | None = None) -> BaseException:
        """As the signal would have ended the program."""
        if self._received == signal.SIGINT:
            return KeyboardInterrupt()
        return SystemExit(128 + signal.SIGTERM)

    def over(self) -> None:
        self._signals.uninstall()
        atexit.unregister(self._exit)

    def _signalled(self, number: int, before: Any, frame: FrameType | None) -> None:
        again, self._received = self.wanted is not None, signal.Signals(number)
        self.wanted = AT_ONCE if again else "signal"
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
        if again:
            self.over()
            raise self.end()
