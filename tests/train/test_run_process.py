"""A run in a program of its own: signals, two programs in one folder, and the program's end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lorry
from lorry.errors import AlreadyExistsError

PROGRAM = Path(__file__).parent / "programs" / "counting.py"
ENVIRON = {**os.environ, "PYTHONPATH": str(Path(lorry.__file__).parents[1])}


class Program:
    """One that runs, and what it says."""

    def __init__(self, folder: Path, *words: str, steps: int = 10_000, pause: float = 0.002) -> None:
        command = [sys.executable, PROGRAM, folder, str(steps), str(pause), *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRON, start_new_session=True
        )

    def wait_for(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return line.strip()
        assert self.process.stderr is not None
        raise AssertionError(f"ended without saying {text!r}: {self.process.stderr.read()}")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Status, what it said since, and its errors."""
        said, errors = self.process.communicate(timeout=30)
        return self.process.returncode, said, errors


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*words: str, folder: Path = tmp_path / "run", **options: float) -> Program:
        started.append(Program(folder, *words, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for program in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.communicate()


def step_of(line: str) -> int:
    return int(line.rpartition(" ")[2])


def head(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return int(json.loads((folder / "HEAD").read_text().splitlines()[0])["step"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_saves_at_the_next_safe_point_and_ends_the_program(
    start: Callable[..., Program], tmp_path: Path, number: int, status: int
) -> None:
    program = start()
    program.wait_for("training")
    program.send(number)
    assert program.end()[0] == status
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = max(json.loads(row)["step"] for row in rows)
    assert head(tmp_path / "run") == last, "not one step is lost"
    again = start(steps=last + 1)
    assert step_of(again.wait_for("restored True")) == last
    assert again.end()[0] == 0


def test_the_result_is_that_of_a_program_that_nobody_stopped(start: Callable[..., Program], tmp_path: Path) -> None:
    expected = start(folder=tmp_path / "other", steps=500, pause=0).wait_for("sum")
    program = start(steps=500)
    program.wait_for("training")
    program.send(signal.SIGTERM)
    program.end()
    assert start(steps=500, pause=0).wait_for("sum") == expected


def test_a_second_signal_does_not_wait_for_the_step(start: Callable[..., Program]) -> None:
    program = start("stuck")
    program.wait_for("stuck")
    program.send(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):  # the first one waits for the safe point
        program.process.wait(0.3)
    program.send(signal.SIGTERM)
    assert program.end()[0] == 143


@pytest.mark.parametrize("words", [(), ("with",)])
def test_a_second_signal_does_not_wait_for_a_save(start: Callable[..., Program], words: tuple[str, ...]) -> None:
    program = start("slow disk", "handler", *words)
    program.wait_for("saving")
    program.send(signal.SIGTERM)
    program.wait_for("the program's own handler")
    program.send(signal.SIGTERM)
    assert program.end()[0] == 143


def test_the_program_s_own_handler_is_called_too(start: Callable[..., Program], tmp_path: Path) -> None:
    program = start("handler")
    program.wait_for("training")
    program.send(signal.SIGTERM)
    program.wait_for("the program's own handler")
    assert program.end()[0] == 143
    assert head(tmp_path / "run") >= 1


def test_forks_die_of_signals_as_if_there_were_no_run(start: Callable[..., Program]) -> None:
    program = start("fork")
    child = step_of(program.wait_for("fork "))
    handle = os.pidfd_open(child)
    os.kill(child, signal.SIGTERM)
    assert select.select([handle], [], [], 10)[0], "the fork waits for a safe point that never comes"
    os.close(handle)
    program.send(signal.SIGTERM)
    assert program.end()[0] == 143  # its pipe is closed: nobody of the fork is left


def test_an_exception_saves_nothing(start: Callable[..., Program], tmp_path: Path) -> None:
    status, _, errors = start("exception", steps=5).end()
    assert status == 1
    assert "a bug in the program" in errors
    assert not (tmp_path / "run" / "HEAD").exists()


def test_the_end_of_the_program_saves_the_last_step(start: Callable[..., Program], tmp_path: Path) -> None:
    assert start(steps=5).end()[0] == 0
    assert head(tmp_path / "run") == 5
    assert step_of(start(steps=5).wait_for("restored True")) == 5


def test_two_programs_cannot_train_in_one_folder(start: Callable[..., Program]) -> None:
    first = start()
    first.wait_for("training")
    status, _, errors = start().end()
    assert status == 1
    assert re.search(rf"AlreadyExistsError: Process {first.process.pid} is training in .*/run: two would", errors)
    first.send(signal.SIGTERM)
    assert first.end()[0] == 143


def test_a_program_that_was_killed_is_in_nobody_s_way_even_if_its_forks_live_on(start: Callable[..., Program]) -> None:
    first = start("fork")
    first.wait_for("fork ")
    first.process.kill()
    first.process.wait()
    assert start(steps=3).end()[0] == 0


def test_one_program_has_one_run_per_folder(tmp_path: Path) -> None:
    with lorry.run(tmp_path) as run:
        with pytest.raises(AlreadyExistsError, match="This program has a run in"):
            lorry.run(tmp_path)
        run.restore()
    lorry.run(tmp_path).finish()


def test_the_folder_is_named_by_the_script_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/finetune.py"])
    with lorry.run() as run:
        assert run.folder == tmp_path / "lorry-runs" / "finetune"
    monkeypatch.setenv("LORRY_RUN_DIR", str(tmp_path / "given"))
    with lorry.run() as run:
        assert run.folder == tmp_path / "given"
    with lorry.run("argument") as run:
        assert run.folder == tmp_path / "argument"
