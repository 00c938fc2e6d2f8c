"""Processes die while a large payload is under way, there or back: its bytes arrive, and nothing is left of it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import payloads
import pytest
from server_home import ServerHome, wait_until
from test_faults import volume_folder
from test_faults_server import Caller

import lorry

CALLS = 4
WORKER_POINTS = [
    "worker.call_received",
    "worker.after_accept",
    "worker.after_dispatch",
    "worker.result_received",
    "worker.before_result_commit",
    "worker.after_result_commit",
]
CONTAINER_POINTS = ["runner.input_received", "runner.before_result", "runner.after_result"]


@pytest.mark.parametrize("point", WORKER_POINTS)
def test_large_payloads_survive_the_worker(own_server: ServerHome, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_FAULT", f"{point}:3")
    monkeypatch.setenv("LORRY_FAULT_ONCE", str(own_server.root / "fault"))
    Caller(lambda: exchange(payloads.reverse)).answer()
    assert (own_server.root / f"fault.{point}").exists(), "the fault did not happen"
    check_that_nothing_is_left(own_server, orphans=CALLS)


@pytest.mark.parametrize("point", CONTAINER_POINTS)
def test_large_payloads_survive_their_container(own_server: ServerHome, point: str) -> None:
    faulty = payloads.reverse.with_options(env={"LORRY_FAULT": f"{point}:3", "LORRY_FAULT_ONCE": "/out/fault"})
    Caller(lambda: exchange(faulty)).answer()
    assert (volume_folder(own_server) / f"fault.{point}").exists(), "the fault did not happen"
    check_that_nothing_is_left(own_server)


def exchange(reverse: lorry.Function) -> None:
    """Synchronous calls, journaled calls and a map: each value is checked, to its last byte."""
    with payloads.app.run():
        for seed in range(CALLS):
            check(reverse.remote(payloads.value(seed)), seed)
        spawned = [reverse.spawn(payloads.value(seed)) for seed in range(CALLS, 2 * CALLS)]
        for seed, call in enumerate(spawned, CALLS):
            check(call.get(timeout=30), seed)
        seeds = range(2 * CALLS, 3 * CALLS)
        for seed, answer in zip(seeds, reverse.map(map(payloads.value, seeds)), strict=True):
            check(answer, seed)


def check(answer: bytes, seed: int) -> None:
    assert answer == payloads.value(seed)[::-1], f"the bytes of value {seed} are not those that were sent"


@pytest.fixture(autouse=True)
def _nothing_is_left_in_this_process() -> Iterator[None]:
    """The client's thread has ended: whatever held a payload for it is gone. Other tests of this process have left
    theirs."""
    before = payloads_open_in(os.getpid())
    yield
    gc.collect()
    assert payloads_open_in(os.getpid()) <= before


def check_that_nothing_is_left(home: ServerHome, orphans: int = 0) -> None:
    """The app has ended with its containers: whatever held a payload is gone."""
    worker = home.worker_pid()
    wait_until(lambda: not payloads_open_in(worker))
    files = list((home.state / "spool").glob("*/*"))
    # Of each spawned call its result, which may be fetched again. What the dead worker had on disk and not in the
    # journal stays until its call is forgotten.
    assert CALLS <= len(files) <= CALLS + orphans, files
    assert not [path for path in files if path.suffix]
    wait_until(lambda: not list((home.state / "containers").iterdir()))


def payloads_open_in(pid: int) -> set[str]:
    """Descriptors and mappings."""
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
        if target.startswith("/memfd:lorry") or "/spool/" in target:
            found.add(f"{number} {target}")
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return found | {line for line in maps if "/memfd:lorry" in line or "/spool/" in line}
