"""Processes are killed, stopped and starved at each point of a call's life. Nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import journal
import pytest
from server_asking import ask
from server_home import PROGRAMS, ServerHome, processes_of, wait_until

import lorry
from lorry import exception
from lorry.sdk.channel import Channel


def traces(home: ServerHome, name: str) -> Counter[str]:
    """How often each input ran."""
    folder = next((home.state / "volumes").glob("vo-*"))
    path = folder / name
    return Counter(path.read_text().split()) if path.exists() else Counter()


def volume_folder(home: ServerHome) -> Path:
    return next((home.state / "volumes").glob("vo-*"))


def containers() -> list[dict[str, object]]:
    return list(ask("container_list")["containers"])


WORKER_POINTS = [
    "worker.call_received",
    "worker.after_accept",
    "worker.after_dispatch",
    "worker.result_received",
    "worker.before_result_commit",
    "worker.after_result_commit",
]


@pytest.mark.parametrize("point", WORKER_POINTS)
def test_the_worker_dies_at_a_point_of_a_call_s_life(
    own_server: ServerHome, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_FAULT", f"{point}:3")
    monkeypatch.setenv("LORRY_FAULT_ONCE", str(own_server.root / "fault"))
    with journal.app.run():
        spawned = [journal.mark.spawn(i) for i in range(10)]
        assert [call.get(timeout=30) for call in spawned] == list(range(10))
        assert [journal.mark.remote(i) for i in range(10, 20)] == list(range(10, 20))
        assert list(journal.mark.map(range(20, 60))) == list(range(20, 60))
    assert (own_server.root / f"fault.{point}").exists(), "the fault did not happen"
    ran = traces(own_server, "log")
    assert set(ran) == {str(i) for i in range(60)}
    assert sum(ran.values()) <= 60 * 1.2


@pytest.mark.parametrize("point", ["runner.input_received", "runner.before_result", "runner.after_result"])
def test_a_container_dies_at_a_point_of_an_input_s_life(own_server: ServerHome, point: str) -> None:
    with journal.app.run():
        faulty = journal.marked_with_faults.with_options(
            env={"LORRY_FAULT": f"{point}:2", "LORRY_FAULT_ONCE": "/out/fault"}
        )
        assert [faulty.remote(i, "log") for i in range(5)] == list(range(5))
        assert list(faulty.map(range(5, 50), kwargs={"name": "log"})) == list(range(5, 50))
    assert (volume_folder(own_server) / f"fault.{point}").exists(), "the fault did not happen"
    ran = traces(own_server, "log")
    assert set(ran) == {str(i) for i in range(50)}
    assert max(ran.values()) <= 2


@pytest.mark.parametrize("victim", ["worker", "keeper", "container"])
def test_kill_with_10_000_inputs_queued(own_server: ServerHome, victim: str) -> None:
    n = 10_000
    with journal.app.run():
        results = []
        for i, value in enumerate(journal.mark.map(range(n))):
            results.append(value)
            if i == 50:
                kill(own_server, victim)
    assert results == list(range(n))
    ran = traces(own_server, "log")
    assert len(ran) == n
    assert sum(ran.values()) / n <= 1.2


def kill(home: ServerHome, victim: str) -> None:
    if victim == "worker":
        os.kill(home.worker_pid(), signal.SIGKILL)
    elif victim == "keeper":
        keeper = home.keeper_pid()
        assert keeper is not None
        os.kill(keeper, signal.SIGKILL)
        os.kill(home_worker_of(home), signal.SIGKILL)
    else:
        for name in os.listdir(home.state / "containers"):
            for pid in processes_of(home.state / "containers" / name):
                os.kill(pid, signal.SIGKILL)


def home_worker_of(home: ServerHome) -> int:
    import json

    return int(json.loads((home.state / "server.json").read_text())["pid"])


def test_a_function_that_runs_survives_the_worker_s_death_and_is_not_started_again(own_server: ServerHome) -> None:
    with journal.app.run():
        call = journal.wait_for.spawn("go")
        wait_until(lambda: traces(own_server, "waiting"))
        before = own_server.worker_pid()
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: Channel().ask("server_status", {})["pid"] != before)
        (volume_folder(own_server) / "go").write_text("")
        assert call.get(timeout=30) == "go"
    assert sum(traces(own_server, "waiting").values()) == 1


def test_a_container_outlives_the_worker_that_had_not_written_its_row(
    own_server: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_FAULT", "worker.before_container_row")
    monkeypatch.setenv("LORRY_FAULT_ONCE", str(own_server.root / "fault"))
    with journal.app.run():
        call = journal.wait_for.spawn("go")
        wait_until((own_server.root / "fault.worker.before_container_row").exists)
        (started,) = os.listdir(own_server.state / "containers")
        wait_until(lambda: traces(own_server, "waiting"))
        assert [row["container_id"] for row in containers()] == [started]
        (volume_folder(own_server) / "go").write_text("")
        assert call.get(timeout=30) == "go"
        wait_until(lambda: not os.listdir(own_server.state / "started"))
    assert traces(own_server, "waiting").total() == 1


def test_a_synchronous_call_survives_the_worker_s_death_and_runs_once(own_server: ServerHome) -> None:
    with journal.app.run():
        journal.mark.remote(0)
        answers: list[str] = []
        caller = threading.Thread(target=lambda: answers.append(journal.wait_for.remote("go")))
        caller.start()
        wait_until(lambda: traces(own_server, "waiting"))
        os.kill(own_server.worker_pid(), signal.SIGKILL)
        time.sleep(0.3)
        (volume_folder(own_server) / "go").write_text("")
        caller.join(timeout=30)
        assert answers == ["go"]
    assert sum(traces(own_server, "waiting").values()) == 1


def test_a_generator_that_has_delivered_is_not_restarted(own_server: ServerHome) -> None:
    with journal.app.run():
        values = journal.stream.remote_gen(1000, "stream")
        assert next(values) == 0
        kill(own_server, "container")
        with pytest.raises(exception.ContainerLostError, match="not started again"):
            list(values)
    assert traces(own_server, "stream") == Counter({"started": 1})


def test_a_client_that_is_killed_takes_its_app_along(own_server: ServerHome) -> None:
    program = "import journal\nwith journal.app.run():\n journal.wait_for.remote('never')"
    client = subprocess.Popen([sys.executable, "-c", program], cwd=PROGRAMS)
    wait_until(lambda: (own_server.state / "volumes").exists() and any((own_server.state / "volumes").glob("vo-*")))
    wait_until(lambda: traces(own_server, "waiting"))
    client.kill()
    client.wait()
    wait_until(lambda: not containers())


def test_a_stopped_container_is_killed_when_its_time_is_over(own_server: ServerHome) -> None:
    with journal.app.run():
        quick = journal.wait_for.with_options(timeout=1)
        call = quick.spawn("never")
        wait_until(lambda: traces(own_server, "waiting"))
        for name in os.listdir(own_server.state / "containers"):
            for pid in processes_of(own_server.state / "containers" / name):
                os.kill(pid, signal.SIGSTOP)
        with pytest.raises(exception.FunctionTimeoutError):
            call.get(timeout=30)


def test_a_worker_that_is_stopped_for_a_while_loses_nothing(own_server: ServerHome) -> None:
    with journal.app.run():
        journal.mark.remote(0)
        worker = own_server.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (worker, signal.SIGCONT)).start()
        assert list(journal.mark.map(range(1, 100))) == list(range(1, 100))


def test_ten_clients_at_once_start_one_server(own_server: ServerHome) -> None:
    program = "from lorry.sdk.channel import Channel; print(Channel().ask('server_status', {})['keeper'])"
    clients = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(10)]
    keepers = {client.communicate(timeout=60)[0].strip() for client in clients}
    assert len(keepers) == 1


def test_deployments_and_results_are_there_after_a_reboot(own_server: ServerHome) -> None:
    journal.app.deploy(name="lasting")
    handle = lorry.Function.from_name("lasting", "mark")
    call = handle.spawn(5)
    assert call.get(timeout=30) == 5
    own_server.stop()
    assert lorry.FunctionCall.from_id(call.object_id).get(timeout=30) == 5
    assert lorry.Function.from_name("lasting", "mark").remote(6) == 6
