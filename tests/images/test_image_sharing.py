"""Many callers, many processes, kill -9: one image each time, and nothing half-made is ever used."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from image_workshop import GatedRunner, Workshop, packages

import lorry.errors
from lorry.errors import ImageBuildError
from lorry.images.shared import MISSED_LINES, SharedBuild

SPEC = packages("beta")

BUILDER_PROCESS = """
import asyncio, sys
from pathlib import Path
from image_workshop import GatedRunner, Workshop, packages
from lorry.images import disk

workshop, pause = Workshop.__new__(Workshop), sys.argv[2]
workshop.folder, workshop.log = Path(sys.argv[1]), []

def reached(where):
    if where == pause:
        print("reached", flush=True)
        sys.stdin.readline()

def before(argv):
    reached({"venv": "venv", "pip": "pip " + argv[2]}.get(argv[1], "probe"))

if pause == "sync":
    import lorry.images.builder as builder
    builder.sync_file_system = lambda folder: reached("sync")
built = asyncio.run(workshop.ensure(workshop.builder(GatedRunner(before)), packages("beta")))
print(built.cached, built.prefix, flush=True)
"""


def start_builder(workshop: Workshop, pause: str = "") -> subprocess.Popen[str]:
    paths = [str(Path(lorry.errors.__file__).parents[1]), str(Path(__file__).parent)]
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER_PROCESS, str(workshop.folder), pause],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    with process:
        out, _ = process.communicate("\n")
    assert process.returncode == 0
    return out


def attempts(workshop: Workshop) -> list[str]:
    return [path.name for path in (workshop.root / "uv").iterdir() if "." in path.name]


def imports_beta(python: str) -> bool:
    return subprocess.run([python, "-I", "-c", "import alpha, beta"], check=False).returncode == 0


@pytest.mark.parametrize("pause", ["venv", "pip install", "pip freeze", "sync"])
def test_a_builder_killed_at_any_point_leaves_nothing_that_is_used(workshop: Workshop, pause: str) -> None:
    with start_builder(workshop, pause) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        process.send_signal(signal.SIGKILL)
    assert list((workshop.root / "images").glob("*.json")) == []
    built = asyncio.run(workshop.ensure(workshop.builder(), SPEC))
    assert not built.cached
    assert imports_beta(built.python)
    assert attempts(workshop) == [Path(built.prefix or "").name]
    assert list((workshop.root / "recipes").iterdir()) == []


def test_a_restarted_server_sweeps_what_a_killed_one_left(workshop: Workshop) -> None:
    with start_builder(workshop, "pip freeze") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(attempts(workshop)) == 1
        asyncio.run(workshop.builder().sweep())
        assert len(attempts(workshop)) == 1, "the build of a living process was swept"
        process.kill()
    asyncio.run(workshop.builder().sweep())
    assert attempts(workshop) == []


def test_a_second_process_waits_for_the_first_and_takes_its_image(workshop: Workshop) -> None:
    first = start_builder(workshop, "pip install")
    assert first.stdout is not None
    assert first.stdout.readline() == "reached\n"

    async def second() -> None:
        waiting = asyncio.Event()

        def log(line: str) -> None:
            assert line == "waiting for another process that builds the same image"
            waiting.set()

        builder = workshop.builder(runner := GatedRunner())
        task = asyncio.create_task(builder.ensure(SPEC, workshop.settings, log))
        await waiting.wait()
        out = await asyncio.to_thread(finish, first)
        built = await task
        assert built.cached
        assert out.split() == ["False", built.prefix]
        assert runner.installs() == 0
        assert imports_beta(built.python)

    asyncio.run(second())


def test_many_callers_in_one_process_share_one_build_and_all_hear_its_log(workshop: Workshop) -> None:
    async def share() -> None:
        builder = workshop.builder(runner := GatedRunner())
        logs: list[list[str]] = [[] for _ in range(5)]
        results = await asyncio.gather(*(builder.ensure(SPEC, workshop.settings, log.append) for log in logs))
        assert len({built.prefix for built in results}) == 1
        assert runner.installs() == 1
        assert all(log == logs[0] for log in logs)
        assert logs[0][0] == "layer 1 of 1 (beta)"

    asyncio.run(share())


def test_of_a_log_without_end_a_late_caller_gets_the_end() -> None:
    async def share() -> None:
        written, go_on = asyncio.Event(), asyncio.Event()

        async def make(emit: Callable[[str], None]) -> str:
            for number in range(MISSED_LINES + 500):
                emit(str(number))
            written.set()
            await go_on.wait()
            return "made"

        build = SharedBuild(make, lambda: None)
        first: list[str] = []
        late: list[str] = []
        waiting = [asyncio.create_task(build.wait(first.append))]
        await written.wait()
        waiting.append(asyncio.create_task(build.wait(late.append)))
        await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.gather(*waiting) == ["made", "made"]
        assert (late[0], late[-1], len(late)) == ("500", str(MISSED_LINES + 499), MISSED_LINES)

    asyncio.run(share())


class Paused:
    """Holds the install back until it is let go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    def __call__(self, argv: Sequence[str]) -> object:
        return self._hold() if list(argv[1:3]) == ["pip", "install"] else None

    async def _hold(self) -> None:
        self.reached.set()
        await self.go.wait()


async def cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_cancelling_one_waiter_does_not_disturb_the_others(workshop: Workshop) -> None:
    async def scenario() -> None:
        builder = workshop.builder(runner := GatedRunner(pause := Paused()))
        first = asyncio.create_task(workshop.ensure(builder, SPEC))
        await pause.reached.wait()
        late: list[str] = []
        second = asyncio.create_task(builder.ensure(SPEC, workshop.settings, late.append))
        while not late:  # the lines that it missed are told to the late-comer at once
            await asyncio.sleep(0)
        await cancel(first)
        pause.go.set()
        assert imports_beta((await second).python)
        assert runner.installs() == 1
        assert late[0] == "layer 1 of 1 (beta)"

    asyncio.run(scenario())


def test_when_the_last_waiter_is_gone_the_build_is_stopped_and_removed(workshop: Workshop) -> None:
    async def scenario() -> None:
        builder = workshop.builder(GatedRunner(pause := Paused()))
        task = asyncio.create_task(workshop.ensure(builder, SPEC))
        await pause.reached.wait()
        await cancel(task)
        assert attempts(workshop) == []
        pause.go.set()
        again = await workshop.ensure(builder, SPEC)
        assert not again.cached
        assert imports_beta(again.python)

    asyncio.run(scenario())


def test_a_log_that_raises_ends_neither_the_build_nor_the_others_log(workshop: Workshop) -> None:
    async def scenario() -> None:
        def broken(line: str) -> None:
            raise BrokenPipeError("the client went away")

        builder = workshop.builder()
        results = await asyncio.gather(builder.ensure(SPEC, workshop.settings, broken), workshop.ensure(builder, SPEC))
        assert results[0] == results[1]
        assert workshop.log[0] == "layer 1 of 1 (beta)"

    asyncio.run(scenario())


def test_a_failed_build_fails_every_waiter_and_is_tried_again_next_time(workshop: Workshop) -> None:
    async def scenario() -> None:
        builder = workshop.builder(runner := GatedRunner())
        spec = packages("nowhere")
        for attempt in (1, 2):
            results = await asyncio.gather(*(workshop.ensure(builder, spec) for _ in range(3)), return_exceptions=True)
            assert all(isinstance(result, ImageBuildError) for result in results)
            assert runner.installs() == attempt

    asyncio.run(scenario())
