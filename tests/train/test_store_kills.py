"""An attempt that dies anywhere, and attempts that live at the same time: HEAD is the one before or the one after."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import store_saving
from store_saving import contents, saved, state_at

from lorry import faults
from lorry.errors import ResourceError, StaleAttemptError
from lorry.train import lock
from lorry.train.local_store import LocalStore
from lorry.train.manifest import Head
from lorry.train.store import resolve

PROGRAM = [sys.executable, store_saving.__file__]
PER_SAVE = {"chunk_written": 3, "chunk_renamed": 3, "manifest_written": 1, "head_swap_before": 1, "head_swap_after": 1}
"""Passages of a fault point in the first save; one fewer chunk is new in those after it."""


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a folder: thousands of fsyncs, and a kill does not depend on them."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="lorry-store-", dir=memory if memory.is_dir() else tmp_path)
    yield Path(folder)
    shutil.rmtree(folder)


def attempt(folder: Path, last_step: int, fault: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "LORRY_FAULT": fault}
    return subprocess.Popen([*PROGRAM, folder, str(last_step)], env=environment, stdout=subprocess.PIPE, text=True)


def checked_head(folder: Path) -> Head | None:
    """HEAD, all of whose bytes are there and are those of its step."""
    store = LocalStore(folder)
    head = store.head()
    if head is None:
        return None
    manifest = store.manifest(head.manifest)
    assert (manifest.step, manifest.token) == (head.step, head.token)
    assert contents(store, manifest) == state_at(head.step)
    return head


@pytest.mark.parametrize("save", [1, 3])
@pytest.mark.parametrize("point", PER_SAVE)
def test_kill_9_at_a_named_point_leaves_the_head_before_it(tmp_path: Path, point: str, save: int) -> None:
    first, later = PER_SAVE[point], min(PER_SAVE[point], 2)
    passages = [first, first + later, first + 2 * later][save - 1]  # the last passage of that save
    with attempt(tmp_path, 5, f"train.{point}:{passages}") as killed:
        assert killed.wait(30) == -signal.SIGKILL
    head = checked_head(tmp_path)
    assert (head.step if head else 0) == (save if point == "head_swap_after" else save - 1)
    with attempt(tmp_path, 5) as next_one:
        assert next_one.wait(30) == 0
    head = checked_head(tmp_path)
    assert head is not None
    assert (head.step, head.token) == (5, 2)
    assert not list((tmp_path / "incoming").glob("*/*"))


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_random_moments_never_loses_a_step_that_was_reported(tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    known = 0
    while known < 60:
        with attempt(tmp_path, 60) as process:
            assert process.stdout is not None
            for _ in range(moments.randrange(5, 20)):
                process.stdout.readline()
            until = time.perf_counter() + moments.uniform(0, 0.004)  # several times a save
            while time.perf_counter() < until:
                pass
            process.kill()
            reported = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        head = checked_head(tmp_path)
        assert head is not None
        assert head.step >= max([known, *(int(line) for line in reported)])
        known = head.step
    assert not list((tmp_path / "bad").iterdir())


def test_kill_9_at_any_byte(tmp_path: Path) -> None:
    """Forks of one process, each of which dies some bytes later than the one before, until one has saved it all."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_BYTE, str(Path(store_saving.__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 100


EVERY_BYTE = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from store_saving import LocalStore, attempt, contents, die_after, state_at

start, folder, tried, steps = Path(sys.argv[2], "start"), Path(sys.argv[2], "run"), 0, []
attempt(start, 1)
while True:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    child = os.fork()
    if not child:
        die_after(tried * 17)
        attempt(folder, 2)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    store = LocalStore(folder)
    head = store.head()
    steps.append(head.step)
    assert contents(store, store.manifest(head.manifest)) == state_at(head.step)
    if os.waitstatus_to_exitcode(status) == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    tried += 1
assert steps == [1] * tried + [2]
print(tried)
"""


def test_of_two_live_attempts_the_older_is_refused_and_head_never_goes_back(tmp_path: Path) -> None:
    """The older one saves as fast as it can when the newer begins."""
    with attempt(tmp_path, 10**6) as first:
        assert first.stdout is not None
        for _ in range(10):
            first.stdout.readline()
        with attempt(tmp_path, 10**6) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "begun 2\n"
            seen: list[Head] = []
            while not seen or seen[-1].step < seen[0].step + 10:
                seen += [head for head in [checked_head(tmp_path)] if head]
            assert first.wait(30) == 1  # StaleAttemptError, on its stderr
            second.kill()
    assert [head.token for head in seen] == sorted(head.token for head in seen)
    assert [head.step for head in seen if head.token == 2] == sorted(head.step for head in seen if head.token == 2)
    assert not list((tmp_path / "bad").iterdir())


def stop_at(monkeypatch: pytest.MonkeyPatch, point: str, act: Callable[[], None]) -> None:
    """At the first passage of the point, `act` once."""
    passed: list[str] = []

    def passage(name: str) -> None:
        if name == point and not passed:
            passed.append(name)
            act()

    monkeypatch.setattr(faults, "armed", True)
    monkeypatch.setattr(faults, "point", passage)


@pytest.mark.parametrize("point", ["train.chunk_written", "train.chunk_renamed"])
def test_an_attempt_that_begins_during_a_save_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """And goes on from there, with the chunks that the stale one brings to disk meanwhile."""
    stale, newer = LocalStore(tmp_path), LocalStore(tmp_path)
    head = saved(stale, 1, stale.begin())
    stop_at(monkeypatch, point, lambda: saved(newer, 2, newer.begin(), head.manifest) and None)
    with pytest.raises(StaleAttemptError):
        saved(stale, 2, 1, head.manifest)
    newest = checked_head(tmp_path)
    assert newest is not None
    assert (newest.step, newest.token) == (2, 2)
    assert resolve(newer) == newer.manifest(newest.manifest)


def test_an_attempt_that_is_stopped_in_a_commit_is_named_and_the_next_one_waits_no_longer_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attempt(tmp_path, 5, "train.head_swap_before:2:stop") as stopped:
        os.waitpid(stopped.pid, os.WUNTRACED)
        with monkeypatch.context() as soon:
            soon.setattr(lock, "PATIENCE", 0.1)
            with pytest.raises(ResourceError, match=rf"Process {stopped.pid} \(stopped\) has held .*LOCK for 0.1 s"):
                LocalStore(tmp_path).begin()
        stopped.send_signal(signal.SIGCONT)
        assert LocalStore(tmp_path).begin() == 2
        stopped.wait(30)
    head = checked_head(tmp_path)
    assert head is not None
    assert head.step >= 2


def test_a_fork_that_is_born_in_a_commit_does_not_keep_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DataLoader's worker has all of its parent's descriptors."""
    store, forks = LocalStore(tmp_path), []

    def fork() -> None:
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        forks.append(child)

    stop_at(monkeypatch, "train.manifest_written", fork)
    head = saved(store, 1, store.begin())
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    saved(store, 2, 1, head.manifest)
    os.kill(forks[0], signal.SIGKILL)
    os.waitpid(forks[0], 0)
