"""SIGTERM and SIGINT while a run trains: a flag now, the checkpoint at the next safe point."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """The two handlers. `received` is looked at by every `run.step()`."""

    def __init__(self) -> None:
        self.received: int | None = None
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

    def raise_it(self) -> None:
        """End as the signal would have ended the program."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if os.getpid() != self._pid:  # a fork, such as a DataLoader's worker: it has nothing to save
            signal.signal(number, before if callable(before) else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        again, self.received = self.received is not None, number
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
        if again:  # somebody is in a hurry: the newest checkpoint has to do
            self.raise_it()
