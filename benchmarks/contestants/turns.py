"""A contestant's side of the contest: one line of JSON in, one line of JSON out, until stdin ends.

Standard library only: it runs in the environment of every peer. The real stdout is kept for the answers;
whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

now = time.perf_counter


def serve(measures: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer requests {"measure": name, **parameters}. The empty line says that the contestant is warm."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write("{}\n")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = measures[request.pop("measure")](**request)
        except Exception:
            result = {"error": traceback.format_exc()}
        answers.write(json.dumps(result) + "\n")


def latencies(call: Callable[[], Any], n: int) -> dict[str, Any]:
    """n calls one after the other, in microseconds, after a tenth of that to warm up."""
    for _ in range(max(20, n // 10)):
        call()
    samples = []
    for _ in range(n):
        began = now()
        call()
        samples.append(round((now() - began) * 1e6, 1))
    return {"samples": samples}


def rate(work: Callable[[int], Any], n: int) -> dict[str, Any]:
    """Inputs per second of work(n), after a tenth of it to warm up."""
    work(max(8, n // 10))
    began = now()
    work(n)
    return {"value": n / (now() - began)}


def threaded_rate(call: Callable[[], Any], n: int, threads: int) -> dict[str, Any]:
    """Calls per second of several threads, each one call at a time. They connect beforehand."""
    warm = threading.Barrier(threads + 1)

    def work() -> None:
        for _ in range(20):
            call()
        warm.wait()
        for _ in range(n // threads):
            call()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    warm.wait()
    began = now()
    for worker in workers:
        worker.join()
    return {"value": n // threads * threads / (now() - began)}


def mapped(go: Callable[[int], list[int]], n: int, warm: int = 100) -> dict[str, Any]:
    """Inputs per second of go(n), which gives the list of x*x + 1 for x below n."""
    go(warm)
    began = now()
    result = go(n)
    seconds = now() - began
    assert len(result) == n, f"{len(result)} results for {n} inputs"
    assert sum(result) == (n - 1) * n * (2 * n - 1) // 6 + n
    return {"value": n / seconds}


def payload(send: Callable[[Any], float], size: int, n: int) -> dict[str, Any]:
    """Milliseconds of calls that send a float64 array of `size` bytes and get its sum: the first apart."""
    import numpy as np

    array = np.full(size // 8, 1.5)
    times = []
    for _ in range(n + 1):
        began = now()
        total = send(array)
        times.append((now() - began) * 1e3)
        assert abs(total - 1.5 * array.size) < 1e-6 * array.size
    return {"first": times[0], "samples": times[1:]}


def returned(fetch: Callable[[int], Any], size: int, n: int) -> dict[str, Any]:
    """Milliseconds of calls that get a float64 array of `size` bytes, full of 2.5, back: the first apart."""
    times = []
    for _ in range(n + 1):
        began = now()
        array = fetch(size)
        assert array.nbytes == size
        assert array[0] + array[-1] == 5.0
        times.append((now() - began) * 1e3)
        del array
    return {"first": times[0], "samples": times[1:]}
