"""Templates, their forks and the worker are killed in the middle of a start. No input is lost or runs twice, nothing is
left, and the next start is a fork again."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import forking_deaths
import pytest
from server_home import ServerHome, kill_and_wait, processes_of, wait_until
from test_faults import containers, traces

import lorry
from lorry.sandbox import detect
from lorry.sandbox.limits import LimitsV1, LimitsV2, find_limits
from lorry.sdk.channel import Channel

pytestmark = pytest.mark.skipif(not detect.choose(None).forks, reason="this tier cannot fork")


def marker(when: str) -> lorry.Cls:
    return forking_deaths.Marker.with_options(env={"WHEN": when}, max_containers=1)()


def stop_containers() -> None:
    for row in containers():
        Channel().ask("container_stop", {"container_id": row["container_id"]})
    wait_until(lambda: not containers())


def groups_of(ids: set[str]) -> Iterator[Path]:
    """Control groups of these containers and templates."""
    limits = find_limits()
    bases = limits.bases.values() if isinstance(limits, LimitsV1) else []
    for base in [limits.base] if isinstance(limits, LimitsV2) else bases:
        yield from (path for path in base.iterdir() if path.name in ids)


def leftovers(home: ServerHome, ids: set[str]) -> list[str]:
    """Of these and of whatever has a folder, but for the templates that live."""
    folders = [*(home.state / "containers").iterdir(), *(home.state / "templates").iterdir()]
    alive = {folder.name for folder in folders if processes_of(folder)}
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(home.state) in line]
    return [*mounts, *(str(path) for path in (*folders, *groups_of(ids)) if path.name not in alive)]


def assert_nothing_left(home: ServerHome, ids: set[str]) -> None:
    with suppress(AssertionError):
        wait_until(lambda: not leftovers(home, ids))
    assert leftovers(home, ids) == []


@pytest.mark.parametrize("when", ["before the fork", "after the fork", "in the child", "after hello"])
def test_a_death_between_the_request_for_a_fork_and_its_first_input(own_server: ServerHome, when: str) -> None:
    with forking_deaths.app.run():
        mark = marker(when).mark
        calls = [mark.spawn(i) for i in range(5)]
        assert [call.get(timeout=30) for call in calls] == list(range(5))
        assert traces(own_server, "died").total() == 1, "nobody died"
        ids = {str(row["container_id"]) for row in containers()}
        (row,) = containers()
        if when in ("before the fork", "in the child"):  # else it is a fork: that one, which came through, or the next
            assert row["start"] == "cold"
        stop_containers()
        assert mark.remote(5) == 5
        (row,) = containers()
        assert row["start"] == "template"
        ids |= {str(row["container_id"])} | set(traces(own_server, "imports"))
    assert traces(own_server, "log") == Counter(map(str, range(6)))
    assert_nothing_left(own_server, ids)


def test_a_template_that_is_killed_while_it_imports_is_tried_again(own_server: ServerHome) -> None:
    with forking_deaths.app.run():
        mark = marker("told to go on").mark
        calls = [mark.spawn(i) for i in range(5)]
        wait_until(lambda: (own_server.state / "volumes").exists() and imports(own_server))
        kill_template(own_server)
        assert [call.get(timeout=30) for call in calls] == list(range(5))
        (row,) = containers()
        assert "SIGKILL" in str(row["cold"])
        (folder,) = (own_server.state / "volumes").glob("vo-*")
        (folder / "go").write_text("")
        stop_containers()
        assert mark.remote(5) == 5
        (row,) = containers()
        assert row["start"] == "template"
    assert traces(own_server, "log") == Counter(map(str, range(6)))
    assert_nothing_left(own_server, {str(row["container_id"]), *imports(own_server)})


def test_a_template_that_dies_at_each_import_is_given_up_with_a_reason(own_server: ServerHome) -> None:
    with forking_deaths.app.run():
        mark = marker("always at the import").mark
        for i in range(5):
            assert mark.remote(i) == i
            (row,) = containers()
            assert row["start"] == "cold"
            stop_containers()
    assert "3 failures in a row" in str(row["cold"])
    assert imports(own_server).total() == 3
    assert_nothing_left(own_server, {str(row["container_id"]), *imports(own_server)})


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("no space", "a fork of it did not start: it ended with code 70: dropping capabilities: OSError(28"),
        ("no process", "a fork of it did not start: forking: BlockingIOError(11"),
    ],
)
def test_a_fork_that_fails_says_why_and_leaves_its_template_alone(
    own_server: ServerHome, when: str, reason: str
) -> None:
    with forking_deaths.app.run():
        mark = marker(when).mark
        for i in range(3):
            assert mark.remote(i) == i
            (row,) = containers()
            assert str(row["cold"]).startswith(reason)
            stop_containers()
        assert "3 failures in a row" not in str(row["cold"])
        assert mark.remote(3) == 3
        (row,) = containers()
        assert "3 failures in a row" in str(row["cold"])
    assert imports(own_server).total() == 1
    assert_nothing_left(own_server, {str(row["container_id"]), *imports(own_server)})


def test_the_worker_dies_while_a_template_imports(own_server: ServerHome) -> None:
    with forking_deaths.app.run():
        mark = marker("told to go on").mark
        calls = [mark.spawn(i) for i in range(5)]
        wait_until(lambda: (own_server.state / "volumes").exists() and imports(own_server))
        (first,) = imports(own_server)
        started = set(os.listdir(own_server.state / "containers"))
        kill_and_wait(own_server.worker_pid())
        (folder,) = (own_server.state / "volumes").glob("vo-*")
        wait_until(lambda: len(imports(own_server)) == 2)
        assert not (own_server.state / "templates" / first).exists(), "nobody forks the old one any more"
        (folder / "go").write_text("")
        assert [call.get(timeout=30) for call in calls] == list(range(5))
        (row,) = containers()
        assert row["start"] == "template"
    assert traces(own_server, "log") == Counter(map(str, range(5)))
    assert_nothing_left(own_server, started | {str(row["container_id"]), *imports(own_server)})


def test_the_worker_dies_between_the_request_for_a_fork_and_its_hello(
    own_server: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_FAULT", "worker.fork_requested:1:stop")
    monkeypatch.setenv("LORRY_FAULT_ONCE", str(own_server.root / "fault"))
    with forking_deaths.app.run():
        mark = marker("").mark
        calls = [mark.spawn(i) for i in range(5)]
        wait_until((own_server.root / "fault.worker.fork_requested").exists)
        (started,) = os.listdir(own_server.state / "containers")
        wait_until(lambda: processes_of(own_server.state / "containers" / started))  # it waits for an answer
        kill_and_wait(own_server.worker_pid())
        assert [call.get(timeout=30) for call in calls] == list(range(5))
        (row,) = containers()
        assert row["start"] == "template"
    assert traces(own_server, "log") == Counter(map(str, range(5)))
    assert_nothing_left(own_server, {started, str(row["container_id"]), *imports(own_server)})


def imports(home: ServerHome) -> Counter[str]:
    """Templates that have begun to import."""
    return traces(home, "imports") if list((home.state / "volumes").glob("vo-*")) else Counter()


def kill_template(home: ServerHome) -> None:
    (folder,) = (home.state / "templates").iterdir()
    (process,) = processes_of(folder)
    os.kill(process, signal.SIGKILL)
