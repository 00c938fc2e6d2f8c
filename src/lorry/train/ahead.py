"""Reading ahead: a thread that fetches what a loop will need."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable

from lorry.errors import Error


class Ahead:
    """`fetch` is called with each run of samples that was asked for, one after the other, until `end`."""

    def __init__(self, fetch: Callable[[range], None]) -> None:
        self._fetch, self._ended = fetch, False
        self._asked: queue.SimpleQueue[range] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, runs: Iterable[range]) -> None:
        for run in runs:
            self._asked.put(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="lorry-ahead", daemon=True)
                self._thread.start()

    def end(self) -> None:
        """Returns at once; what is being fetched now is the last."""
        self._ended = True
        self._asked.put(range(0))

    def _work(self) -> None:
        with contextlib.suppress(Error, OSError):  # who needs the samples meets it too, and can say so
            while run := self._asked.get():
                if self._ended:
                    return
                self._fetch(run)
