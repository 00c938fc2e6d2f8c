"""The keeper with workers of a few lines: it starts them again, gives up at last, and ends with them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_home import wait_until

from lorry.server import keeper

CHANGED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("keeper", {path!r})
keeper = importlib.util.module_from_spec(spec)
spec.loader.exec_module(keeper)
keeper.MAX_FAILURES, keeper.RESTART_MAX = 3, 0.02
lock = keeper.lock
def noted(state):
    open(sys.argv[-1] + "/tries", "a").write("lock\\n")
    return lock(state)
keeper.lock = noted
sys.exit(keeper.main(sys.argv[1], sys.argv[2], sys.argv[3:]))
"""


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.state, self.runtime = root / "state", root / "run" / "x"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, worker: str, **more: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-c", CHANGED.format(path=keeper.__file__)]
        command += [str(self.state), str(self.runtime), sys.executable, "-I", "-S", "-c", worker, str(self.root)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)  # type: ignore[call-overload]
        self.started.append(process)
        return process  # type: ignore[no-any-return]

    def lines(self, name: str) -> list[str]:
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="lorry-keeper-") as folder:
        bench = Bench(Path(folder))
        yield bench
        for process in bench.started:
            process.kill()
            process.wait()


NOTE = "import os, sys, time, signal\nopen(sys.argv[1] + '/pids', 'a').write(f'{os.getpid()}\\n')\n"


def test_a_worker_that_dies_is_started_again_until_it_has_failed_too_often(bench: Bench) -> None:
    assert bench.start(NOTE + "os._exit(3)").wait(20) == keeper.EXIT_FINISHED
    assert len(bench.lines("pids")) == 3
    assert not (bench.runtime / "s").exists()


def test_a_killed_worker_is_replaced_and_takes_over_the_same_sockets(bench: Bench) -> None:
    program = NOTE + "open(sys.argv[1] + '/fds', 'a').write(os.environ['LORRY_LISTEN'] + '\\n')\ntime.sleep(60)"
    process = bench.start(program)
    wait_until(lambda: len(bench.lines("fds")) == 1)
    os.kill(int(bench.lines("pids")[0]), signal.SIGKILL)
    wait_until(lambda: len(bench.lines("fds")) == 2)
    assert bench.lines("fds")[0] == bench.lines("fds")[1]
    process.terminate()
    assert process.wait(10) == keeper.EXIT_FINISHED
    with pytest.raises(ProcessLookupError):
        os.kill(int(bench.lines("pids")[1]), 0)


@pytest.mark.parametrize("code", [keeper.EXIT_FINISHED, keeper.EXIT_CONFIGURATION])
def test_a_worker_that_is_done_or_cannot_work_is_not_started_again(bench: Bench, code: int) -> None:
    bench.start(NOTE + f"os._exit({code})").wait(20)
    assert len(bench.lines("pids")) == 1


def test_a_second_keeper_of_the_same_state_leaves_at_once(bench: Bench) -> None:
    first = bench.start(NOTE + "time.sleep(60)")
    wait_until(lambda: bench.lines("pids"))
    assert bench.start(NOTE).wait(10) == keeper.EXIT_FINISHED
    assert len(bench.lines("pids")) == 1
    assert (bench.state / "lock").read_text() == str(first.pid)
    assert first.poll() is None
    assert (bench.runtime / "s").exists()


def test_a_keeper_takes_over_from_one_that_is_ending(bench: Bench) -> None:
    """One that ends removes its sockets before it is gone: a client that comes in between starts the next one."""
    bench.state.mkdir()
    with (bench.state / "lock").open("w") as ending:
        fcntl.flock(ending, fcntl.LOCK_EX)
        successor = bench.start(NOTE + "time.sleep(60)")
        wait_until(lambda: len(bench.lines("tries")) > 1)
        assert not bench.lines("pids")
    wait_until(lambda: bench.lines("pids"))
    assert (bench.state / "lock").read_text() == str(successor.pid)


def test_sigterm_ends_the_worker_and_waits_for_it(bench: Bench) -> None:
    graceful = (
        "def end(*_): open(sys.argv[1] + '/ended', 'w').write('yes'); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n" + NOTE + "time.sleep(60)"
    )
    process = bench.start("import os, sys, time, signal\n" + graceful)
    wait_until(lambda: bench.lines("pids"))
    process.terminate()
    assert process.wait(10) == keeper.EXIT_FINISHED
    assert bench.lines("ended") == ["yes"]


def test_a_worker_inherits_the_listening_sockets_and_nothing_else(bench: Bench) -> None:
    stray, other = os.pipe()
    os.set_inheritable(stray, True)
    program = (
        NOTE + "fds = [int(n) for n in os.listdir('/proc/self/fd')]\n"
        "named = {n: os.readlink(f'/proc/self/fd/{n}') for n in fds if os.path.lexists(f'/proc/self/fd/{n}')}\n"
        "mine = {int(n) for n in os.environ['LORRY_LISTEN'].split(',')} | {0, 1, 2}\n"
        "open(sys.argv[1] + '/extra', 'w').write(repr([x for n, x in named.items() if n not in mine]) + '\\n')"
    )
    bench.start(program, pass_fds=[stray]).wait(20)
    os.close(stray)
    os.close(other)
    assert bench.lines("extra") == ["[]"]


def test_the_sockets_are_private_and_the_inner_one_is_for_containers(bench: Bench) -> None:
    process = bench.start(NOTE + "time.sleep(60)")
    wait_until(lambda: bench.lines("pids"))
    modes = {str(path.relative_to(bench.runtime)): path.stat().st_mode & 0o777 for path in bench.runtime.rglob("*")}
    assert modes == {"s": 0o600, "inner": 0o755, "inner/s": 0o666}
    assert bench.runtime.stat().st_mode & 0o777 == 0o700
    process.terminate()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(SystemExit, match="belongs to another user"):
        keeper.private_folder(str(tmp_path / "x"), 0o700)
