"""The server dies while a run saves, begins and ends; a run hangs. Nothing that was committed is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run_by_hand
from hypothesis import given
from hypothesis import strategies as st
from run_orders import Orders, run_of
from server_home import ServerHome, kill_and_wait, processes_of, wait_until

from lorry.clock import ManualClock
from lorry.errors import ResourceError, StorageFullError
from lorry.lifecycle.container import ContainerState
from lorry.model.function import ResumePolicy
from lorry.model.records import Status
from lorry.model.run import RunRecord, RunState
from lorry.server import runs as runs_module
from lorry.server.journal import Outcome
from lorry.server.parcels import Parcel
from lorry.server.run_files import Progress, RunFiles
from lorry.server.run_watch import AWAY, LEAST, TIMES, Liveness, RunWatch
from lorry.server.runs import Attempt, Runs, UnderWay
from lorry.store.memory import MemoryStore

POINTS = ["worker.run_begun", "worker.before_head_swap", "worker.after_head_swap"]
ENDS = ["worker.before_result_commit", "worker.after_result_commit"]


@pytest.mark.parametrize("point", [*POINTS, *ENDS])
def test_the_worker_dies_at_a_point_of_a_run_s_life(
    own_server: ServerHome, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_FAULT", point)
    monkeypatch.setenv("LORRY_FAULT_ONCE", str(own_server.root / "fault"))
    with run_by_hand.app.run():
        call = run_by_hand.obey.spawn()
        orders = Orders(call.object_id)
        saved = orders.do("save", step=5)
        assert isinstance(saved, str), saved
        if point in POINTS:
            assert (own_server.root / f"fault.{point}").exists(), "the fault did not happen"
            assert (orders.show()["state"], orders.show()["head_step"]) == ("running", 5)
        orders.give("finish", value="done")
        assert call.get(timeout=60) == "done"
        assert (own_server.root / f"fault.{point}").exists(), "the fault did not happen"
        shown = orders.wait_for(state="done")
    assert (shown["head_step"], shown["error"]) == (5, "")
    assert shown["attempt_rows"][-1]["ended"] == "finished"
    # A result that was not on disk is lost with the worker: the input runs again.
    assert shown["attempts"] == (2 if point == "worker.before_result_commit" else 1)


def test_keeper_and_worker_die_while_a_run_saves(own_server: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save waits in the dead worker's socket; the container asks the next server again."""
    monkeypatch.setenv("LORRY_FAULT", "worker.before_head_swap:1:stop")
    monkeypatch.setenv("LORRY_FAULT_ONCE", str(own_server.root / "fault"))
    with run_by_hand.app.run():
        call = run_by_hand.obey.spawn()
        orders = Orders(call.object_id)
        answer = orders.give("save", step=5)
        wait_until((own_server.root / "fault.worker.before_head_swap").exists, 20)
        worker, keeper = own_server.worker_pid(), own_server.keeper_pid()
        assert keeper is not None
        kill_and_wait(keeper)
        kill_and_wait(worker)
        assert run_of(orders.run_id)["state"] == "running"  # which starts a server
        wait_until(answer.exists, 30)
        assert orders.wait_for(head_step=5)["attempts"] == 1
        assert Path(orders.folder, "m", f"5-{json.loads(answer.read_text())}.json").exists()
        orders.give("finish", value="done")
        assert call.get(timeout=60) == "done"
        assert orders.wait_for(state="done")["attempts"] == 1


def test_a_run_whose_container_died_with_the_server_waits_and_goes_on(own_server: ServerHome) -> None:
    with run_by_hand.app.run():
        call = run_by_hand.obey.spawn()
        orders = Orders(call.object_id)
        orders.do("save", step=5)
        (attempt,) = orders.show()["attempt_rows"]
        worker = own_server.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        for pid in processes_of(own_server.state / "containers" / attempt["container_id"]):
            kill_and_wait(pid)
        kill_and_wait(worker)
        begun = orders.do("begin")
        assert (begun["head"]["step"], begun["attempt"], begun["interruptions"]) == (5, 2, 1)
        orders.give("finish", value="done")
        assert call.get(timeout=60) == "done"
        shown = orders.wait_for(state="done")
    assert [row["ended"] for row in shown["attempt_rows"]] == ["killed", "finished"]
    assert "while the server was away" in shown["attempt_rows"][0]["reason"]


def test_an_attempt_that_has_saved_was_not_in_vain_although_the_worker_died_since(own_server: ServerHome) -> None:
    with run_by_hand.app.run():
        call = run_by_hand.obey.spawn()
        orders = Orders(call.object_id)
        orders.do("save", step=5)
        kill_and_wait(own_server.worker_pid())
        orders.do("pid")
        orders.wait_for(state="running")
        orders.give("fail", text="out of luck")  # in each attempt: the first has saved, three more have not
        with pytest.raises(ValueError, match="out of luck"):
            call.get(timeout=50)
        assert orders.wait_for(state="failed")["attempts"] == 4


def test_a_cancelled_run_saves_although_the_worker_dies_meanwhile(own_server: ServerHome) -> None:
    """It is told again, just as it comes back to the next worker."""
    with run_by_hand.app.run():
        call = run_by_hand.obey.spawn()
        orders = Orders(call.object_id)
        orders.give("dawdle")
        wait_until((orders.folder / "dawdles").exists)
        call.cancel()
        orders.wait_for(phase="saving")
        kill_and_wait(own_server.worker_pid())
        assert orders.show()["phase"] == "saving"
        (orders.folder / "enough").touch()
        wait_until(lambda: orders.show()["attempt_rows"][0]["ended"], 30)
        shown = orders.wait_for(state="cancelled", phase=None)
    assert shown["head_step"] == 1000
    assert [row["ended"] for row in shown["attempt_rows"]] == ["cancelled"]


def test_a_run_without_mounts_finds_its_folder(own_server: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_SANDBOX", "process")
    with run_by_hand.app.run():
        call = run_by_hand.obey.spawn()
        orders = Orders(call.object_id)
        assert orders.do("begin")["folder"] == str(orders.folder)
        orders.do("save", step=5)
        orders.give("finish", value="done")
        assert call.get(timeout=60) == "done"
        assert orders.show()["head_step"] == 5


def test_the_end_of_a_run_is_written_once_the_disk_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bytes were just enough for its result."""
    monkeypatch.setattr(runs_module, "FULL_PAUSE", 0.001)
    bench = Bench(tmp_path)
    refusals = iter([StorageFullError("full"), ResourceError("locked")])
    finish_run = bench.store.finish_run

    async def refused_twice(*end: Any) -> None:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        await finish_run(*end)

    async def finish() -> None:
        nothing: Any = None
        runs = Runs(bench.clock, bench.store, nothing, nothing, nothing, bench.files, False)
        runs.under_way[bench.live.call, 0] = bench.live
        outcome = Outcome(bench.live.call, 0, ((0, 1),), Status.OK, Parcel(b""), 0, False)
        following = runs._recorded(outcome)
        assert following is not None
        await following
        assert not runs.under_way

    monkeypatch.setattr(bench.store, "finish_run", refused_twice)
    asyncio.run(finish())
    assert bench.live.over.is_set()
    assert bench.store.run("ru-1").state is RunState.DONE


def test_an_attempt_that_ended_while_the_server_was_away_ended_when_it_last_said_something(tmp_path: Path) -> None:
    """Days for which the machine was off would make interruptions look rare, and checkpoints with them."""

    bench = Bench(tmp_path)
    store, clock = bench.store, bench.clock
    (attempt,) = store.attempts("ru-1")
    said = bench.files.path("a/f/ru-1") / "progress.json"
    said.write_text("{}")
    os.utime(said, (0.0, attempt.started_at + 100.0))
    clock.advance(3 * 24 * 3600.0)

    async def recover() -> None:
        nothing: Any = None
        gone: Any = SimpleNamespace(containers={})
        runs = Runs(clock, store, nothing, gone, nothing, bench.files, False)
        runs.recover({"ap-1"})
        await asyncio.gather(*runs._tasks)

    asyncio.run(recover())
    (attempt,) = store.attempts("ru-1")
    assert attempt.ended_at == attempt.started_at + 100.0
    assert store.run("ru-1").seconds == pytest.approx(100.0)


# Hangs


def said(step: int, at: float, phase: str = "training", q99: float = 0.2) -> Progress:
    return Progress(token=1, step=step, at=at, phase=phase, q99=q99)


def test_only_silence_between_steps_is_a_hang() -> None:
    alive = Liveness(0.0)
    assert alive.look(None, 1e6) is None, "it has said nothing yet"
    assert alive.look(said(5, 0.0, "restoring"), 1e6) is None
    assert alive.look(said(5, 1.0, "waiting"), 2e6) is None
    assert alive.look(said(5, 1.0, "waiting"), 3e6) is None, "the first step may compile for hours"
    assert alive.look(said(5, 1.5, q99=0.0), 3e6) is None
    assert alive.look(said(5, 1.5, q99=0.0), 3e6 + 599) is None, "and the second for minutes"
    assert alive.look(said(5, 1.5, q99=0.0), 3e6 + 601) is not None
    assert alive.look(said(6, 2.0), 3e6) is None
    assert alive.look(said(6, 2.0), 3e6 + 59) is None
    reason = alive.look(said(6, 2.0), 3e6 + 75)
    assert reason is not None
    assert reason.startswith(
        "no step for 75 s (limit 60 s: 10 × 99th percentile of 0.2 s, at least 60 s), so it was taken"  # noqa: RUF001
    )
    assert alive.look(said(6, 3.0), 3e6 + 76) is None, "a heartbeat"
    assert alive.look(said(6, 4.0, "saving"), 4e6) is None
    assert alive.look(said(6, 5.0, q99=20.0), 4e6 + 1) is None
    assert alive.look(said(6, 5.0, q99=20.0), 4e6 + 199) is None, "slow steps have more time"
    assert alive.look(said(6, 5.0, q99=20.0), 4e6 + 202) is not None


@given(st.lists(st.tuples(st.floats(0, LEAST / 2), st.booleans(), st.booleans()), max_size=60), st.floats(0.001, 10))
def test_whoever_steps_in_time_is_never_killed_and_whoever_stops_is(
    rounds: list[tuple[float, bool, bool]], q99: float
) -> None:
    """`rounds`: seconds until the next look, whether there was a step by then, whether the server was away."""
    alive, now, step, quiet = Liveness(0.0), 0.0, 0, 0.0
    alive.look(said(0, 0.0, q99=q99), now)
    for seconds, steps, away in rounds:
        now += seconds
        quiet += seconds
        if steps:
            step, quiet = step + 1, 0.0
        if away:
            alive.excuse(now)
            quiet = 0.0
        killed = alive.look(said(step, float(step), q99=q99), now)
        assert (killed is not None) == (quiet > max(LEAST, TIMES * q99))


class Bench:
    """A watch over one run, with a clock that the test moves."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.clock, self.store = ManualClock(), MemoryStore()
        self.files = RunFiles(folder, None)
        run = asyncio.run(self._begin())
        self.files.make(run.folder)
        self.killed: list[tuple[str, str, bool]] = []
        self.ended: list[str] = []
        attempt = Attempt("ru-1", (run.call, 0), 1, "ct-1", run.folder, self.clock.monotonic())
        policy_ = ResumePolicy(**policy)
        deadline = None if policy_.deadline is None else self.clock.monotonic() + policy_.deadline
        self.live = UnderWay(run.call, 0, 1, deadline, policy_)
        self.runs: Any = SimpleNamespace(
            attempts={"ct-1": attempt},
            under_way={(run.call, 0): self.live},
            files=self.files,
            attempt_at=lambda _run: attempt,
        )
        self.container = SimpleNamespace(state=ContainerState.READY)
        fleet: Any = SimpleNamespace(
            containers={"ct-1": self.container},
            kill=lambda name, why, *, guilty: self.killed.append((name, why, guilty)),
            stop=lambda name, why: self.ended.append(f"{name} {why}"),
        )
        self.watch = RunWatch(self.clock, self.store, fleet, self.runs)

    async def _begin(self) -> RunRecord:
        record = RunRecord(
            run_id="ru-1",
            app_id="ap-1",
            app_name="a",
            tag="f",
            function=1,
            call=bytes(16),
            chunk=0,
            state=RunState.RUNNING,
            created_at=0.0,
            since=0.0,
            folder="a/f/ru-1",
        )
        return await self.store.begin_run(record, "ct-1", self.clock.wall())

    def look(self, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        asyncio.run(self.watch.look())

    def look_for(self, seconds: int) -> None:
        for _ in range(seconds):
            self.look()


STEPPER = """
import json, os, sys, time
step = 0
while True:
    step += 1
    said = {"token": 1, "step": step, "at": time.monotonic(), "phase": "training", "q99": 0.01}
    with open("progress.new", "w") as file:
        json.dump(said, file)
    os.rename("progress.new", "progress.json")
    time.sleep(0.002)
"""


def test_a_process_that_is_stopped_is_taken_to_hang(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    place = bench.files.path("a/f/ru-1")
    with subprocess.Popen([sys.executable, "-c", STEPPER], cwd=place) as stepper:
        try:
            wait_until((place / "progress.json").exists)
            bench.look()
            first = bench.files.progress("a/f/ru-1")
            assert first is not None
            wait_until(lambda: bench.files.progress("a/f/ru-1") != first)
            os.kill(stepper.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, stepper.pid, os.WSTOPPED)
            bench.look()  # finds its last step, which is new
            bench.look_for(60)
            assert not bench.killed
            bench.look_for(3)
        finally:
            stepper.kill()
    ((container, reason, guilty),) = bench.killed
    assert (container, guilty) == ("ct-1", True)
    assert "no step for 6" in reason


def test_a_server_that_was_stopped_itself_accuses_nobody(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    place = bench.files.path("a/f/ru-1") / "progress.json"
    for step in (1, 2):
        place.write_text(json.dumps({"token": 1, "step": step, "at": 1.0, "phase": "training", "q99": 0.1}))
        bench.look()
    bench.look(10_000)
    assert not bench.killed
    bench.look_for(int(LEAST))
    assert not bench.killed, "it had the whole time again"
    bench.look(AWAY - 1)
    assert len(bench.killed) == 1


def test_what_another_attempt_has_said_counts_for_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    place = bench.files.path("a/f/ru-1") / "progress.json"
    for step in (1, 2):
        place.write_text(json.dumps({"token": 7, "step": step, "at": 1.0, "phase": "training", "q99": 0.1}))
        bench.look()
    bench.look_for(100)
    assert not bench.killed


def test_a_deadline_ends_the_run_once_and_a_clock_that_jumps_does_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path, deadline=3600.0)
    bench.clock.offset += 1e6
    bench.look(3598.0)
    assert bench.ended == []
    bench.container.state = ContainerState.LOST_CONTACT
    bench.look(1.0)
    assert bench.ended == [], "it comes back, and can save then"
    bench.container.state = ContainerState.READY
    bench.look(1.0)
    bench.look(1.0)
    assert bench.ended == ["ct-1 the run's deadline is over"]
    assert bench.live.overdue, "its input ends with its attempt"


def test_a_run_that_waits_when_its_deadline_is_over_ends_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, deadline=3600.0)
    switch: Any = SimpleNamespace(cancel=lambda _call, _target, text, **_: bench.ended.append(text))
    nothing: Any = None
    runs = Runs(bench.clock, bench.store, switch, nothing, nothing, bench.files, isolated=True)
    bench.runs.attempt_at, bench.runs.end_overdue = lambda _run: None, runs.end_overdue
    bench.look(3601.0)
    bench.look(1.0)
    (text,) = bench.ended
    assert text.startswith("the run's deadline of 1 h is over at step 0. It has no checkpoint; `lorry runs resume ru-1")
