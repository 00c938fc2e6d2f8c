"""The server's own processes die or are replaced while calls run: the keeper alone, a build's worker, a restart."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import journal
from server_home import ServerHome, kill_and_wait, wait_until
from test_faults import containers, traces, volume_folder

import lorry
from lorry.sdk.channel import Channel

LORRY = [sys.executable, "-m", "lorry.cli.main"]


def lorry_command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LORRY, *words], capture_output=True, text=True, timeout=60, check=False)


def status() -> dict[str, object]:
    channel = Channel(may_start=False)
    try:
        return dict(channel.ask("server_status", {}))
    finally:
        channel.close()


class Caller(threading.Thread):
    """A call on a thread of its own. `answer()` waits for it, and raises what it raised."""

    def __init__(self, call: Callable[[], object], patience: float = 60) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._patience = patience
        self._outcome: list[object] = []
        self.start()

    def run(self) -> None:
        try:
            self._outcome.append(self._call())
        except Exception as problem:
            self._outcome.append(problem)

    def answer(self) -> object:
        self.join(timeout=self._patience)
        assert len(self._outcome) == 1, "it has not come back"
        if isinstance(self._outcome[0], Exception):
            raise self._outcome[0]
        return self._outcome[0]


# The keeper alone


def keeper_dies(home: ServerHome) -> int:
    """The worker that goes on without it."""
    worker, keeper = home.worker_pid(), home.keeper_pid()
    assert keeper is not None
    kill_and_wait(keeper)
    return worker


def test_calls_go_on_when_the_keeper_alone_dies(own_server: ServerHome) -> None:
    with journal.app.run():
        spawned = journal.wait_for.spawn("go")
        waiting = Caller(lambda: journal.wait_for.remote("go"))
        wait_until(lambda: traces(own_server, "waiting").total() == 2)
        worker = keeper_dies(own_server)
        (volume_folder(own_server) / "go").write_text("")
        assert spawned.get(timeout=30) == "go"
        assert waiting.answer() == "go"
        assert status()["pid"] == worker, "the worker was replaced, and it should have gone on"
        assert list(journal.mark.map(range(100))) == list(range(100))
    assert traces(own_server, "waiting").total() == 2
    assert traces(own_server, "log") == Counter(map(str, range(100)))


def test_a_new_keeper_takes_over_when_the_worker_that_lost_its_own_dies(own_server: ServerHome) -> None:
    with journal.app.run():
        spawned = journal.wait_for.spawn("go")
        waiting = Caller(lambda: journal.wait_for.remote("go"))
        wait_until(lambda: traces(own_server, "waiting").total() == 2)
        before = own_server.keeper_pid()
        kill_and_wait(keeper_dies(own_server))
        wait_until(lambda: own_server.keeper_pid() != before)
        (volume_folder(own_server) / "go").write_text("")
        assert waiting.answer() == "go"
        assert spawned.get(timeout=30) == "go"
    assert traces(own_server, "waiting").total() == 2


def test_a_server_without_its_keeper_is_gone_when_stop_says_so(own_server: ServerHome) -> None:
    with journal.app.run():
        journal.mark.spawn(0).get(timeout=30)
        worker = keeper_dies(own_server)
        stopped = lorry_command("server", "stop", "--force")
        assert (stopped.returncode, stopped.stdout) == (0, "Stopped.\n"), stopped.stderr
        assert not alive(worker), "it said that the server is stopped, and its worker lives"


def alive(pid: int) -> bool:
    """Zombies, whose parent has not looked yet, are dead."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return bool(file.read())
    except OSError:
        return False


# Restart


def test_a_restart_under_load_loses_nothing_and_delivers_nothing_twice(own_server: ServerHome) -> None:
    journal.app.deploy(name="loaded")
    mark, slow_mark = (lorry.Function.from_name("loaded", name) for name in ("mark", "slow_mark"))
    mapped: list[int] = []
    called: list[int] = []
    enough = threading.Event()

    def run_map() -> None:
        for value in slow_mark.map(iter_until(enough), kwargs={"seconds": 0.002, "name": "mapped"}):
            mapped.append(value)

    def run_calls() -> None:
        while not enough.is_set():
            called.append(mark.remote(len(called), "called"))

    mapping, calling = Caller(run_map), Caller(run_calls)
    try:
        wait_until(lambda: len(mapped) > 100 and len(called) > 10, 30)
        before = status()["keeper"]
        restarted = lorry_command("server", "restart")
        assert restarted.returncode == 0, restarted.stderr
        mapped_before, called_before = len(mapped), len(called)
        wait_until(lambda: len(mapped) > mapped_before + 100 and len(called) > called_before + 10, 30)
    finally:
        enough.set()
        mapping.answer()
        calling.answer()
    assert status()["keeper"] != before
    assert mapped == list(range(len(mapped)))
    assert called == list(range(len(called)))
    assert set(traces(own_server, "mapped")) == set(map(str, mapped))
    assert set(traces(own_server, "called")) == set(map(str, called))


def test_a_restart_leaves_running_functions_of_apps_and_their_containers_alone(own_server: ServerHome) -> None:
    with journal.app.run():
        slow = journal.slow_mark
        assert slow.remote(0, 0.0, "warm") == 0
        kept = [row["container_id"] for row in containers()]
        calls = [Caller(lambda: slow.remote(1, 4.0, "remote")), Caller(lambda: slow.spawn(2, 4.0, "spawned").get())]
        wait_until(lambda: traces(own_server, "remote") and traces(own_server, "spawned"), 30)
        before = status()["keeper"]
        restarted = lorry_command("server", "restart")
        assert restarted.returncode == 0, restarted.stderr
        assert status()["keeper"] != before
        assert set(kept) <= {row["container_id"] for row in containers()}
        assert [call.answer() for call in calls] == [1, 2]
        assert slow.remote(3, 0.0, "after") == 3, "the app goes on"
    for name, value in (("remote", "1"), ("spawned", "2")):
        assert traces(own_server, name) == {value: 1}, "it did not notice"


def iter_until(enough: threading.Event) -> Iterator[int]:
    """Inputs without an end: the map is under way for as long as the test wants."""
    for number in itertools.count():
        if enough.is_set():
            return
        yield number
