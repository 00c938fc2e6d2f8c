"""Lorry, as a user would write it: no tuning."""

from __future__ import annotations

import threading
import time
from typing import Any

import turns
import work

import lorry

app = lorry.App("benchmark")
noop = app.function()(work.noop)
square = app.function()(work.square)
# NumPy of the client's own environment: the same for every contestant, and nothing to build.
total = app.function(image=lorry.Image.host())(work.total)
full = app.function(image=lorry.Image.host())(work.full)


def spawn_rate(n: int) -> dict[str, Any]:
    """Spawns per second, each on disk before the next; the results are awaited, but not in the time."""

    def spawn_all(count: int) -> list[Any]:
        return [noop.spawn(1) for _ in range(count)]

    spawn_all(10)
    began = turns.now()
    calls = spawn_all(n)
    rate = n / (turns.now() - began)
    calls[-1].get()
    return {"value": rate}


class Journaling:
    """Spawns without pause on a thread, from `start` to `stop`."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread()
        self._count = 0
        self._began = 0.0

    def start(self) -> dict[str, Any]:
        noop.remote()
        self._stop.clear()
        self._count, self._began = 0, time.perf_counter()
        self._thread = threading.Thread(target=self._spawn, daemon=True)
        self._thread.start()
        return {}

    def _spawn(self) -> None:
        while not self._stop.is_set():
            noop.spawn(self._count)
            self._count += 1

    def stop(self) -> dict[str, Any]:
        self._stop.set()
        self._thread.join()
        return {"value": self._count / (time.perf_counter() - self._began)}


if __name__ == "__main__":
    journaling = Journaling()
    with app.run():
        turns.serve(
            {
                "call": lambda n: turns.latencies(lambda: noop.remote(1), n),
                "spawn": spawn_rate,
                "threads": lambda n: turns.threaded_rate(lambda: noop.remote(1), n, 8),
                "journal_start": journaling.start,
                "journal_stop": journaling.stop,
                "map": lambda n: turns.mapped(lambda count: list(square.map(range(count))), n),
                "payload": lambda size, n: turns.payload(total.remote, size, n),
                "returned": lambda size, n: turns.returned(full.remote, size, n),
            }
        )
