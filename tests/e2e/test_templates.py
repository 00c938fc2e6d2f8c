"""Containers are forks of one process per version of a function, with walls of their own."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import forking
import forking_secret
import pytest
import threaded
from server_home import ServerHome, processes_of, wait_until
from test_faults import containers

import lorry
from lorry import exception
from lorry.sandbox import detect
from lorry.sdk.channel import Channel

pytestmark = pytest.mark.skipif(not detect.choose(None).forks, reason="this tier cannot fork")


def templates(home: ServerHome) -> list[Path]:
    """Those whose process lives."""
    return [folder for folder in (home.state / "templates").iterdir() if processes_of(folder)]


def test_containers_are_forks_and_a_second_run_is_warm(own_server: ServerHome) -> None:
    with forking.app.run():
        runs = list(forking.alone.map(range(3)))
    with forking.app.run():
        runs += forking.alone.map(range(2))
        assert {row["start"] for row in containers()} <= {"template"}
    assert len({run["container"] for run in runs}) == 5
    assert len({run["imported"] for run in runs}) == 1, "the module was imported once"
    assert {run["count"] for run in runs} == {1}, "what a fork changes is its own"
    assert len({run["random"] for run in runs}) == 5
    assert len(templates(own_server)) == 1


def test_a_fork_has_walls_of_its_own(own_server: ServerHome) -> None:
    with forking.app.run():
        first, second = forking.alone.map(range(2))
        assert forking.mount_something.remote() != 0
    assert first["mounts"] != second["mounts"]
    for run in (first, second):
        assert "left-behind" not in run["before"]
        assert run["shm"] == ["left-behind"]
        assert run["others"] == []
        assert run["environ"], "its own /proc is readable"
        assert [line.split()[1] for line in run["capabilities"]] == ["0" * 16] * 5


def test_threads_and_seeds_are_the_container_s(own_server: ServerHome) -> None:
    with forking.app.run():
        assert forking.look.remote()["threads"] == str(len(os.sched_getaffinity(0)))


def test_snap_hooks_run_once_and_the_others_in_each_container(own_server: ServerHome) -> None:
    with forking.app.run():
        states = list(forking.Model().state.map(range(3)))
    assert len({weights for weights, _ in states}) == 1
    assert len({connection for _, connection in states}) == 3


def test_how_a_fork_ended_is_known(own_server: ServerHome) -> None:
    with forking.app.run(), pytest.raises(exception.ContainerLostError, match="exited with code 7"):
        forking.leave.remote(7)


def test_an_import_that_starts_a_thread_starts_cold_and_says_so(own_server: ServerHome) -> None:
    with threaded.app.run():
        assert threaded.answer.remote() == 42
        (row,) = containers()
        assert row["start"] == "cold"
        assert "started 1 thread" in str(row["cold"])
    assert templates(own_server) == []


def test_a_template_that_is_killed_takes_no_container_along(own_server: ServerHome, tmp_path: Path) -> None:
    answers: list[str] = []
    volume = lorry.Volume.from_name("forking", create_if_missing=True)
    waiting = forking.wait_for.with_options(volumes={"/out": volume})
    with forking.app.run():
        caller = threading.Thread(target=lambda: answers.append(waiting.remote("/out")))
        caller.start()
        wait_until(lambda: list((own_server.state / "volumes").glob("vo-*/waiting")))
        (folder,) = (own_server.state / "volumes").glob("vo-*")
        (template,) = templates(own_server)
        (process,) = processes_of(template)
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: not processes_of(template))
        (folder / "go").write_text("")
        caller.join(timeout=30)
        (row,) = containers()
        Channel().ask("container_stop", {"container_id": row["container_id"]})
        assert answers != [waiting.remote("/out")], "a new template imports anew"


def test_nothing_of_a_fork_outlives_its_container(own_server: ServerHome) -> None:
    seconds = f"98765.{os.getpid()}"
    with forking.app.run():
        forking.daemon.remote(seconds)
        wait_until(lambda: sleepers(seconds))
    wait_until(lambda: not sleepers(seconds))


def sleepers(seconds: str) -> list[str]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if seconds.encode() in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0"):
                found.append(entry)
        except OSError:
            continue
    return found


def test_a_secret_that_changes_ends_the_templates_that_have_read_it(own_server: ServerHome) -> None:
    put_secret("one-of-the-secrets")
    with forking_secret.app.run():
        assert forking_secret.password.remote() == "one-of-the-secrets"
        assert b"the import has ***" in logs_of(own_server)
        (template,) = templates(own_server)
        put_secret("another-secret")
        (row,) = containers()
        Channel().ask("container_stop", {"container_id": row["container_id"]})
        wait_until(lambda: not processes_of(template))
        assert forking_secret.password.remote() == "another-secret"


def logs_of(home: ServerHome) -> bytes:
    written = b"".join(path.read_bytes() for path in (home.state / "logs").rglob("*") if path.is_file())
    assert b"one-of-the-secrets" not in written
    return written


def put_secret(password: str) -> None:
    Channel().ask("secret_put", {"name": "forking", "values": {"PASSWORD": password}, "replace": True})


def test_nothing_of_a_template_is_left_when_its_server_has_ended(own_server: ServerHome) -> None:
    with forking.app.run():
        forking.look.remote()
    assert templates(own_server)
    own_server.stop()
    assert list((own_server.state / "templates").iterdir()) == []


def test_a_deployment_has_its_templates_ahead(own_server: ServerHome) -> None:
    forking.app.deploy(name="ahead")
    wait_until(lambda: len(templates(own_server)) >= 2)
    assert containers() == []
    assert lorry.Function.from_name("ahead", "look").remote()["count"] == 1
