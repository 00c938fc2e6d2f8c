"""What can go wrong in training, done for real: a server, containers, checkpoints. The result is always the same, and
what was lost is counted in steps that were done twice."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty
import pytest
from run_orders import run_of
from server_asking import ask, log_lines
from server_home import ServerHome, entered, kill_and_wait, processes_of, wait_until

import lorry
from lorry import exception

STEPS, PAUSE = 60, 0.03
EXPECTED = faulty.undisturbed(STEPS)


@pytest.fixture(scope="module")
def home() -> Iterator[ServerHome]:
    """With containers that have mounts, processes and memory of their own."""
    root = Path(tempfile.mkdtemp(prefix="lorry-own-"))
    home = ServerHome(root)
    with entered(home):
        with faulty.app.run():
            yield home
    home.stop()
    shutil.rmtree(root, ignore_errors=True)


class Watched:
    """A run, by the call that made it."""

    def __init__(self, call: lorry.FunctionCall[Any]) -> None:
        self.call = call
        self.run_id: str = run_of(call.object_id)["run_id"]
        self.folder = Path(self.show()["folder"])

    def show(self) -> dict[str, Any]:
        return ask("run_show", run=self.run_id)

    def head(self) -> int:
        return self.show()["head_step"] or 0

    def wait_for_head(self, step: int) -> None:
        wait_until(lambda: self.head() >= step, 30)

    def steps(self) -> list[int]:
        """Those that were begun, in all attempts."""
        path = self.folder / "steps"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: step in self.steps(), 30)

    def repeated(self) -> int:
        return sum(Counter(self.steps()).values()) - len(set(self.steps()))

    def program(self, home: ServerHome) -> int:
        """The host's pid of the process that trains."""
        (attempt,) = [row for row in self.show()["attempt_rows"] if row["ended"] is None]
        return processes_of(home.state / "containers" / attempt["container_id"])[-1]

    def at_most_lost(self) -> int:
        """W + persist, in steps: of an interval, of a save that was not through, and the step under way."""
        persist = max(row["persist"] for row in self.show()["checkpoints"])
        return faulty.EVERY + math.ceil(persist / PAUSE) + 1

    def ends_well(self) -> dict[str, Any]:
        assert self.call.get(timeout=50) == EXPECTED
        shown = self.show()
        assert (shown["state"], shown["head_step"]) == ("done", STEPS)
        assert all(not row["damaged"] for row in ask("run_verify", run=self.run_id)["checkpoints"])
        return shown


# Ends that are announced: no step is lost


def test_a_time_limit_costs_no_step(home: ServerHome) -> None:
    run = Watched(faulty.in_slices.spawn(STEPS, 0.1))
    shown = run.ends_well()
    assert run.steps() == list(range(1, STEPS + 1))
    assert shown["slices"] >= 2
    assert shown["interruptions"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_process_costs_no_step(home: ServerHome, number: int) -> None:
    run = Watched(faulty.train.spawn(STEPS, PAUSE, "asked"))
    run.wait_for_step(faulty.MARK)
    os.kill(run.program(home), number)
    shown = run.ends_well()
    assert run.steps() == list(range(1, STEPS + 1))
    assert (shown["attempts"], shown["slices"], shown["interruptions"]) == (2, 1, 0)


def test_a_step_that_is_longer_than_the_grace_costs_what_followed_the_checkpoint(home: ServerHome) -> None:
    run = Watched(faulty.train.spawn(STEPS, PAUSE, "slow"))
    run.wait_for_step(faulty.MARK)
    run.wait_for_head(20)
    (attempt,) = run.show()["attempt_rows"]
    ask("container_stop", container_id=attempt["container_id"])
    shown = run.ends_well()
    assert run.repeated() == faulty.MARK - 20
    first, _ = shown["attempt_rows"]
    assert first["ended"] == "killed"
    assert 20 <= first["last_step"] < faulty.MARK  # it tells once a second


# Ends that are not


def test_kill_9_costs_an_interval_and_what_was_being_saved(home: ServerHome) -> None:
    run = Watched(faulty.train.spawn(STEPS, PAUSE, "slow"))
    run.wait_for_step(faulty.MARK)
    run.wait_for_head(20)
    os.kill(run.program(home), signal.SIGKILL)
    assert run.ends_well()["interruptions"] == 1
    assert 0 < run.repeated() <= run.at_most_lost()


def test_a_step_for_which_memory_does_not_suffice_is_tried_again_from_the_checkpoint(home: ServerHome) -> None:
    """The kernel kills the process in its cgroup."""
    run = Watched(faulty.with_little_memory.spawn(STEPS, PAUSE, "memory"))
    shown = run.ends_well()
    first, _ = shown["attempt_rows"]
    assert first["ended"] == "killed"
    assert "the kernel killed it for passing its memory limit (peak 2" in first["reason"]
    assert 0 < run.repeated() <= run.at_most_lost()


def test_memory_that_never_suffices_ends_after_three_attempts_with_the_limit(home: ServerHome) -> None:
    run = Watched(faulty.with_little_memory.spawn(STEPS, PAUSE, "always memory"))
    with pytest.raises(exception.OutOfMemoryError, match="limit of 256 MiB.*3 attempts in a row ended without a new"):
        run.call.get(timeout=50)
    shown = run.show()
    assert (shown["state"], shown["attempts"], shown["head_step"]) == ("failed", 3, None)
    assert "limit of 256 MiB" in shown["error"]


POINTS = [
    "train.staging",
    "train.chunk_written",
    "train.chunk_renamed",
    "train.manifest_written",
    "train.head_swap_before",
    "train.head_swap_after",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_container_dies_at_a_point_of_a_save(home: ServerHome, point: str) -> None:
    """The second one. The head is the first's, unless it had moved."""
    once = f"/out/{point}"
    dying = faulty.train.with_options(env={"LORRY_FAULT": f"{point}:2", "LORRY_FAULT_ONCE": once})
    run = Watched(dying.spawn(STEPS, PAUSE))
    shown = run.ends_well()
    first, second = shown["attempt_rows"]
    assert (first["ended"], shown["interruptions"]) == ("killed", 1)
    assert second["first_step"] == first["last_step"]
    assert 0 < run.repeated() <= run.at_most_lost()


def test_a_container_dies_while_it_restores(home: ServerHome) -> None:
    fault = {"LORRY_FAULT": "train.head_swap_after:2,train.restore", "LORRY_FAULT_ONCE": "/out/restore"}
    run = Watched(faulty.train.with_options(env=fault).spawn(STEPS, PAUSE))
    shown = run.ends_well()
    assert [row["ended"] for row in shown["attempt_rows"]] == ["killed", "killed", "finished"]
    assert run.repeated() <= run.at_most_lost()


def test_worker_and_keeper_die_during_a_save_and_training_goes_on(
    own_server: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_FAULT", "worker.before_head_swap:2:stop")
    monkeypatch.setenv("LORRY_FAULT_ONCE", str(own_server.root / "fault"))
    again = lorry.App("faulty-again")
    train = again.function(timeout=120, resumable=faulty.policy, volumes={"/out": faulty.out})(faulty.train.get_raw_f())
    with again.run():
        call = train.spawn(STEPS, PAUSE)
        wait_until((own_server.root / "fault.worker.before_head_swap").exists, 20)
        worker, keeper = own_server.worker_pid(), own_server.keeper_pid()
        assert keeper is not None
        kill_and_wait(keeper)
        kill_and_wait(worker)
        run = Watched(call)
        shown = run.ends_well()
    assert run.steps() == list(range(1, STEPS + 1))
    assert (shown["attempts"], shown["interruptions"]) == (1, 0)


# Damage


def of_head(run: Watched, part: str) -> Path:
    """A file that only the newest checkpoint needs."""
    newest, *older = sorted(run.folder.glob("m/*.json"), key=lambda path: -int(path.name.partition("-")[0]))
    assert newest.name.startswith(f"{run.head()}-")
    if part == "manifest":
        return newest
    kept = {chunk for path in older for chunk in chunks_in(path)}
    return run.folder / "chunks" / next(chunk[:2] + "/" + chunk for chunk in chunks_in(newest) if chunk not in kept)


def chunks_in(manifest: Path) -> list[str]:
    """The largest first."""
    entries = json.loads(manifest.read_text())["entries"]
    rows = sorted((row for entry in entries for row in entry["chunks"]), key=lambda row: -row["size"])
    return [row["sha256"] for row in rows]


def flip_a_bit(path: Path) -> bytes:
    """What it was."""
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    return content


def stopped_with_two_checkpoints(home: ServerHome, run: Watched) -> int:
    """Its process, which is stopped while nothing is being saved."""
    run.wait_for_head(20)
    program = run.program(home)
    os.kill(program, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    return program


@pytest.mark.parametrize("part", ["chunk", "manifest"])
def test_a_flipped_bit_costs_one_checkpoint_more_and_is_written_again(home: ServerHome, part: str) -> None:
    run = Watched(faulty.train.spawn(STEPS, PAUSE, "slow"))
    program = stopped_with_two_checkpoints(home, run)
    assert run.head() == 20
    damaged = of_head(run, part)
    whole = flip_a_bit(damaged)
    (row,) = [row for row in ask("run_verify", run=run.run_id)["checkpoints"] if row["damaged"]]
    assert (row["step"], row["damaged"]) == (20, [str(damaged.relative_to(run.folder))])
    kill_and_wait(program)
    run.wait_for_head(30)
    assert run.show()["attempt_rows"][-1]["first_step"] == 20  # what the server had; the attempt found step 10
    assert Counter(run.steps())[11] == 2
    assert Counter(run.steps())[10] == 1
    if part == "chunk":
        assert damaged.read_bytes() == whole
    run.ends_well()
    assert [path.name.rpartition("-")[2] for path in run.folder.glob("bad/*")] == [damaged.name.rpartition("-")[2]]
    assert any("The newest checkpoint is damaged" in line for line in log_lines(run.show()["app_id"]))


def test_when_every_checkpoint_is_damaged_the_run_ends_and_starts_nothing_over(home: ServerHome) -> None:
    run = Watched(faulty.train.spawn(STEPS, PAUSE, "slow"))
    program = stopped_with_two_checkpoints(home, run)
    for manifest in run.folder.glob("m/*.json"):
        flip_a_bit(manifest)
    done = run.steps()
    kill_and_wait(program)
    with pytest.raises(exception.Error, match="No checkpoint is whole"):
        run.call.get(timeout=50)
    shown = run.show()
    assert (shown["state"], shown["head_step"]) == ("failed", 20)
    assert "No checkpoint is whole" in shown["error"]
    assert run.steps() == done


# Two attempts alive


def test_of_two_live_attempts_the_older_is_refused(home: ServerHome) -> None:
    run = Watched(faulty.train.spawn(STEPS, PAUSE, "twin"))
    shown = run.ends_well()
    first, *_ = shown["attempt_rows"]
    assert first["ended"] == "error"
    assert re.search(r"StaleAttemptError: .*(cannot save any more|a newer attempt .* has begun)", first["reason"])


# A full disk


@pytest.fixture
def small_disk() -> Iterator[ServerHome]:
    """A server whose runs lie on a disk of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    root = Path(tempfile.mkdtemp(prefix="lorry-small-"))
    home = ServerHome(root)
    runs = home.state / "runs"
    runs.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", runs], check=True)
    try:
        with entered(home):
            yield home
        home.stop()
    finally:
        subprocess.run(["umount", "-l", runs], check=True)
        shutil.rmtree(root, ignore_errors=True)


def fill(folder: Path) -> Path:
    path = folder / "filler"
    with path.open("wb", buffering=0) as filler:
        for size in (1 << 20, 4096):
            try:
                while filler.write(bytes(size)):
                    pass
            except OSError:
                continue
    return path


def test_a_full_disk_keeps_the_last_checkpoint_and_ends_the_run_with_what_to_do(small_disk: ServerHome) -> None:
    again = lorry.App("faulty-disk")
    train = again.function(timeout=120, resumable=faulty.policy)(faulty.train.get_raw_f())
    with again.run():
        run = Watched(train.spawn(STEPS * 2, PAUSE, "full"))
        wait_until((run.folder / "waits").exists, 30)
        filler = fill(small_disk.state / "runs")
        with pytest.raises(exception.Error, match=r"3 checkpoints in a row could not be saved.* is full .*Free space"):
            run.call.get(timeout=50)
        shown = run.show()
        assert shown["state"] == "failed"
        assert shown["head_step"] >= 20
        assert all(not row["damaged"] for row in ask("run_verify", run=run.run_id)["checkpoints"])
        filler.unlink()
        resumed = ask("run_resume", run=run.run_id)
        call: lorry.FunctionCall[str] = lorry.FunctionCall.from_id(resumed["call"])
        assert call.get(timeout=50) == faulty.undisturbed(STEPS * 2)


def test_a_disk_that_was_full_for_a_while_costs_nothing(small_disk: ServerHome) -> None:
    again = lorry.App("faulty-disk")
    train = again.function(timeout=120, resumable=faulty.policy)(faulty.train.get_raw_f())
    with again.run() as app:
        run = Watched(train.spawn(STEPS, PAUSE, "full for a while"))
        wait_until((run.folder / "waits").exists, 30)
        filler = fill(small_disk.state / "runs")
        wait_until(lambda: any("could not be saved" in line for line in log_lines(app.app_id)), 20)
        filler.unlink()
        run.ends_well()
    assert run.steps() == list(range(1, STEPS + 1))


# Losses that are no numbers


def test_a_loss_that_is_no_number_stops_nothing_and_is_valid_json(home: ServerHome) -> None:
    """Nothing is rolled back: which batch was to blame, and whether to skip it, is for the program to decide."""
    run = Watched(faulty.train.spawn(STEPS, PAUSE, "nan"))
    shown = run.ends_well()
    assert shown["metrics"][-1]["loss"] == "NaN"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    show = [Path(sys.executable).parent / "lorry", "runs", "show", run.run_id]
    page = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert "-> nan" in page.replace("\u2192", "->")
    json.loads(subprocess.run([*show, "--json"], capture_output=True, check=True).stdout, parse_constant=refuse)
