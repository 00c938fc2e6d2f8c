"""`lorry.run()` in resumable functions, end to end: slices, kill -9, a worker that is killed, and the same result."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sums
from server_asking import ask
from server_home import PROGRAMS, ServerHome, entered, wait_until

import lorry


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHome]:
    """A server whose containers see the test's files and have its pids."""
    home = ServerHome(tmp_path_factory.mktemp("own"))
    home.environ["LORRY_SANDBOX"] = "process"
    with entered(home), sums.app.run():
        yield home
    home.stop()


def undisturbed(steps: int, folder: Path) -> dict[str, Any]:
    """What the same function gives outside the platform, in one go."""
    (folder / "calm").mkdir()
    program = f"import json, sums; print(json.dumps(sums.train({steps}, 0.0, {str(folder / 'calm')!r})))"
    environ = {**os.environ, "LORRY_RUN_DIR": str(folder / "calm" / "run"), "PYTHONPATH": str(PROGRAMS)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def attempts(folder: Path) -> list[tuple[int, int, int]]:
    """(pid, number, step at which it went on) of each."""
    file = folder / "attempts"
    return [tuple(map(int, line.split())) for line in file.read_text().splitlines()] if file.exists() else []  # type: ignore[misc]


def the_run() -> dict[str, Any]:
    """The newest one."""
    return dict(ask("run_list", all=True, limit=1)["runs"][0])


def progress() -> dict[str, Any]:
    return dict(json.loads(Path(the_run()["folder"], "progress.json").read_text()))


def test_several_slices_give_what_one_would(tmp_path: Path) -> None:
    expected = undisturbed(60, tmp_path)
    assert sums.slowly.remote(60, 0.1, str(tmp_path)) == expected
    made = attempts(tmp_path)
    assert len(made) >= 3
    assert [number for _, number, _ in made] == list(range(1, len(made) + 1))
    steps = [step for _, _, step in made]
    assert steps[0] == 0
    assert all(later - step >= 5 for step, later in itertools.pairwise(steps)), "each slice gets on"
    run = the_run()
    assert (run["state"], run["head_step"], run["interruptions"]) == ("done", 60, 0)
    rows = [json.loads(line) for line in Path(run["folder"], "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "sum" in row] == list(range(1, 61))


def test_kill_9_in_the_middle_costs_steps_and_nothing_else(tmp_path: Path) -> None:
    expected = undisturbed(60, tmp_path)
    call = sums.quickly.spawn(60, 0.03, str(tmp_path))
    wait_until(lambda: attempts(tmp_path) and (the_run()["head_step"] or 0) >= 10, 30)
    os.kill(attempts(tmp_path)[0][0], signal.SIGKILL)
    assert call.get(timeout=60) == expected
    (_, _, first), (_, number, went_on) = attempts(tmp_path)
    assert (first, number) == (0, 2)
    assert went_on >= 10
    assert went_on % 10 == 0 or went_on == 1
    assert the_run()["interruptions"] == 1


def test_what_is_not_tracked_is_lost_so_this_can_fail(tmp_path: Path) -> None:
    expected = undisturbed(60, tmp_path)
    call = sums.quickly.spawn(60, 0.03, str(tmp_path), False)
    wait_until(lambda: attempts(tmp_path) and (the_run()["head_step"] or 0) >= 10, 30)
    os.kill(attempts(tmp_path)[0][0], signal.SIGKILL)
    assert call.get(timeout=60)["digest"] != expected["digest"]


def test_a_worker_that_is_killed_meanwhile_costs_nothing(home: ServerHome, tmp_path: Path) -> None:
    """The attempt goes on, and commits to the next worker."""
    expected = undisturbed(80, tmp_path)
    call = sums.quickly.spawn(80, 0.03, str(tmp_path))
    wait_until(lambda: attempts(tmp_path) and (the_run()["head_step"] or 0) >= 10, 30)
    os.kill(home.worker_pid(), signal.SIGKILL)
    assert call.get(timeout=60) == expected
    assert len(attempts(tmp_path)) == 1
    assert the_run()["head_step"] == 80


def test_sigterm_to_the_container_is_a_slice_that_ends_early(tmp_path: Path) -> None:
    expected = undisturbed(60, tmp_path)
    call = sums.quickly.spawn(60, 0.03, str(tmp_path))
    wait_until(lambda: attempts(tmp_path) and progress()["phase"] == "training", 30)
    os.kill(attempts(tmp_path)[0][0], signal.SIGTERM)
    assert call.get(timeout=60) == expected
    assert len(attempts(tmp_path)) == 2
    assert (the_run()["interruptions"], the_run()["slices"]) == (0, 1)


def test_a_slice_too_short_for_a_step_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    with pytest.raises(lorry.exception.SliceTooShortError, match=r"A slice of 4\.0 s cannot .* = .* Raise timeout="):
        sums.too_short.remote(str(tmp_path))
    assert [step for _, _, step in attempts(tmp_path)] == [0, 1, 2]


def test_a_function_that_is_not_resumable_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(lorry.exception.InvalidError, match=r"Declare @app.function\(resumable=True\)"):
        sums.not_resumable.remote(str(tmp_path))
