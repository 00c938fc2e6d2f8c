"""Contestants side by side: each in a process of its own, kept warm, asked in turn, round after round.

Absolute figures of one machine move by up to three times from minute to minute; only ratios of figures that
were taken seconds apart mean anything. So every round asks every contestant once, in an order that rotates,
and a ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import Series
from server import LOGS
from setup import HERE, python_of

CONTESTANTS = HERE / "contestants"
START_LIMIT = 120.0
"""Seconds until a contestant must be warm: Ray takes up to 20 on a loaded machine."""
END_LIMIT = 20.0


@dataclass(frozen=True)
class Entry:
    """Who takes part: a name for tables, a script in contestants/, an environment of setup.py."""

    name: str
    script: str
    environment: str = "lorry"


LORRY = Entry("Lorry", "lorry_client")
TWO_HOPS = Entry("bare two hops", "two_hops")
EXECUTOR = Entry("ProcessPoolExecutor", "process_pool")
POOL = Entry("multiprocessing.Pool", "multiprocessing_pool")
RAY = Entry("Ray", "ray_peer", "ray")
DASK = Entry("Dask", "dask_peer", "dask")
JOBLIB = Entry("joblib", "joblib_peer", "joblib")
MEMCPY = Entry("warm memcpy", "memory_copy")


class OutError(Exception):
    """A contestant cannot go on; the text says why."""


def environ() -> dict[str, str]:
    """Of every contestant: clusters of our own, nothing reported anywhere."""
    clean = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "VIRTUAL_ENV", "PYTHONPATH")}
    return clean | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TMPDIR": "/tmp/lorry-bench-ray",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


class Contestant:
    """A warm process that measures itself when it is asked."""

    def __init__(self, entry: Entry, start_limit: float = START_LIMIT) -> None:
        python = python_of(entry.environment)
        if python is None:
            raise OutError(f"no environment {entry.environment!r}: python benchmarks/setup.py makes it")
        self.entry = entry
        LOGS.mkdir(parents=True, exist_ok=True)
        self._log = LOGS / f"{entry.script}.log"
        Path(environ()["RAY_TMPDIR"]).mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [python, CONTESTANTS / f"{entry.script}.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                cwd=CONTESTANTS,
                env=environ(),
                start_new_session=True,
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._take(start_limit)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)

    def ask(self, measure: str, limit: float, **parameters: Any) -> dict[str, Any]:
        """One measurement. OutError after `limit` seconds, or when it failed; the process is ended then."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"measure": measure, **parameters}) + "\n")
            answer = self._take(limit)
        except OSError as gone:
            raise OutError(f"its process is gone; see {self._log}") from gone
        if "error" in answer:
            self.end()
            with self._log.open("a") as log:
                log.write(answer["error"])
            raise OutError(answer["error"].strip().splitlines()[-1])
        return answer

    def _take(self, limit: float) -> dict[str, Any]:
        deadline = time.monotonic() + limit
        while True:
            try:
                return dict(json.loads(self._answers.get(timeout=0.5)))
            except queue.Empty:
                code = self._process.poll()
                if code is not None:  # its workers may hold the pipe open, so that end of file is no sign
                    raise OutError(f"its process ended with {code}; see {self._log}") from None
                if time.monotonic() > deadline:
                    self.kill()
                    raise OutError(f"no answer in {limit:g} s") from None

    def end(self) -> None:
        """Let it shut down its cluster; kill what is left of its process group."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_LIMIT)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class Results:
    """What a run has found so far, by measure and contestant."""

    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    out: list[str] = field(default_factory=list)
    """Who could not take part in what, and why."""

    def of(self, measure: str, name: str, unit: str) -> Series:
        return self.series.setdefault(measure, {}).setdefault(name, Series(unit))


class Contest:
    """Warm contestants and the rounds between them. Use as a context manager."""

    def __init__(self, entries: Sequence[Entry], results: Results, *, start_limit: float = START_LIMIT) -> None:
        self.results = results
        self._turn = 0
        self._warm: dict[str, Contestant] = {}
        for entry in entries:
            try:
                self._warm[entry.name] = Contestant(entry, start_limit)
            except OutError as reason:
                self._note(f"{entry.name}: {reason}")

    @property
    def turn(self) -> int:
        """The number of the last round."""
        return self._turn

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_exc: object) -> None:
        for contestant in self._warm.values():
            contestant.end()

    def __contains__(self, entry: Entry) -> bool:
        return entry.name in self._warm

    def _note(self, text: str) -> None:
        self.results.out.append(text)
        say(f"  ! {text}")

    def round(
        self,
        measure: str,
        unit: str,
        asked: Sequence[tuple[Entry, str, dict[str, Any]]],
        limit: float = 120.0,
    ) -> None:
        """Ask each of (contestant, its measure, parameters) once. A contestant may come twice under one entry
        when its name differs: `dataclasses.replace(RAY, name="Ray task")`."""
        self._turn += 1
        shift = self._turn % len(asked)
        for entry, verb, parameters in (*asked[shift:], *asked[:shift]):
            self.ask(measure, unit, entry, verb, parameters, limit)

    def ask(
        self,
        measure: str,
        unit: str,
        entry: Entry,
        verb: str,
        parameters: dict[str, Any],
        limit: float = 120.0,
    ) -> dict[str, Any] | None:
        """One measurement of one contestant, kept under `measure`. None if it is out."""
        contestant = next((c for c in self._warm.values() if c.entry.script == entry.script), None)
        if contestant is None:
            return None
        try:
            answer = contestant.ask(verb, limit, **parameters)
        except OutError as reason:
            self._note(f"{entry.name} in {measure}: {reason}")
            self._warm = {name: c for name, c in self._warm.items() if c is not contestant}
            return None
        if "samples" in answer or "value" in answer:
            self.results.of(measure, entry.name, unit).add(self._turn, answer)
        return answer


@contextlib.contextmanager
def one_core_busy() -> Iterator[None]:
    """A process that spins, on whichever CPU the kernel gives it."""
    spinner = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        yield
    finally:
        spinner.kill()
        spinner.wait()


def alternate(rounds: int, each: Callable[[], None], text: str) -> None:
    """`each` once per round, with a line that tells how long they take."""
    began = time.monotonic()
    for number in range(rounds):
        each()
        if number in (0, rounds - 1):
            say(f"  {text}: round {number + 1} of {rounds}, {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
