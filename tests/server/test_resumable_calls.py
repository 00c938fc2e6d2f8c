"""Resumable functions seen from a client: real processes that end as runs do."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import resumed
from server_asking import ask
from server_home import ServerHome, entered, wait_until

import lorry
from lorry import exception


@pytest.fixture(scope="module", autouse=True)
def home() -> Iterator[ServerHome]:
    home = server_of_its_own()
    with entered(home), resumed.app.run():
        yield home
    drop(home)


def server_of_its_own() -> ServerHome:
    """Its containers see the test's files and have its pids."""
    home = ServerHome(Path(tempfile.mkdtemp(prefix="lorry-own-")))
    home.environ["LORRY_SANDBOX"] = "process"
    return home


def drop(home: ServerHome) -> None:
    home.stop()
    shutil.rmtree(home.root, ignore_errors=True)


def kill_worker(home: ServerHome) -> None:
    before = home.worker_pid()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: ask("server_status")["pid"] != before, 20)


def attempts(folder: Path) -> list[int]:
    """Pids."""
    file = folder / "attempts"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_attempt(folder: Path, number: int) -> None:
    wait_until(lambda: len(attempts(folder)) == number, 20)


def container() -> str:
    """The one that works."""
    (busy,) = [c for c in ask("container_list")["containers"] if c["running"]]
    return str(busy["container_id"])


def test_each_slice_is_a_process_of_its_own_and_the_last_one_answers(tmp_path: Path) -> None:
    assert resumed.three_slices.remote(str(tmp_path)) == 3
    assert len(set(attempts(tmp_path))) == 3


def test_every_way_to_call_a_run(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(5)]
    for folder in folders:
        folder.mkdir()
    texts = list(map(str, folders))
    assert list(resumed.three_slices.map(texts[:3])) == [3, 3, 3]
    assert all(len(set(attempts(folder))) == 3 for folder in folders[:3])
    assert asyncio.run(resumed.three_slices.remote.aio(texts[3])) == 3
    call = resumed.three_slices.spawn(texts[4])
    assert call.get(timeout=30) == 3
    assert len(attempts(folders[4])) == 3


def test_runs_of_a_spawned_map_are_found_by_their_index(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "attempts").write_text("0\n" * number)
    call = resumed.three_slices.spawn_map(list(map(str, folders)))
    assert [call.get(index=index, timeout=30) for index in range(3)] == [3, 3, 3]
    assert list(call.iter()) == [3, 3, 3]


def test_a_chunk_of_several_runs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resumed.three_slices.hydrate()
    monkeypatch.setattr(resumed.three_slices, "is_resumable", False)
    with pytest.raises(exception.InvalidError, match="2 inputs in one chunk, but each input of a resumable"):
        resumed.three_slices.spawn_map([str(tmp_path)] * 2)
    assert attempts(tmp_path) == []


def test_three_errors_without_a_checkpoint_end_with_the_last_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attempt 3"):
        resumed.fails.remote(str(tmp_path))
    assert len(attempts(tmp_path)) == 3


def test_three_deaths_without_a_checkpoint_end_with_the_last_reason(tmp_path: Path) -> None:
    with pytest.raises(exception.ContainerLostError, match=r"SIGKILL.*3 attempts in a row.*not tried again"):
        resumed.dies.remote(str(tmp_path))
    assert len(attempts(tmp_path)) == 3


def test_a_slice_that_is_too_short_is_tried_once(tmp_path: Path) -> None:
    with pytest.raises(exception.SliceTooShortError, match="cannot make one step"):
        resumed.too_short.remote(str(tmp_path))
    assert len(attempts(tmp_path)) == 1


def test_code_that_never_comes_to_a_safe_point_ends_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        exception.FunctionTimeoutError, match=r"timeout=0\.3 s\).*run\.step\(\).*must fit into timeout="
    ):
        resumed.never_yields.remote(str(tmp_path))
    assert len(attempts(tmp_path)) == 3


def test_the_end_of_its_slice_waits_for_a_safe_point(tmp_path: Path) -> None:
    assert resumed.steps.remote(str(tmp_path), 0.3, 2) == 2
    assert (tmp_path / "saved-1").read_text() == "slice"


def test_its_successor_is_ready_before_the_slice_ends(tmp_path: Path) -> None:
    call = resumed.steps.with_options(timeout=2).spawn(str(tmp_path), 0.0, 2)
    wait_for_attempt(tmp_path, 1)
    wait_until(lambda: sum(c["state"] == "ready" and not c["running"] for c in ask("container_list")["containers"]) > 0)
    (spare,) = [c for c in ask("container_list")["containers"] if c["state"] == "ready" and not c["running"]]
    assert call.get(timeout=30) == 2
    assert "slices that end soon" in str(ask("why", subject=spare["container_id"]))


def test_stopping_containers_costs_a_run_nothing(tmp_path: Path) -> None:
    call = resumed.patient.spawn(str(tmp_path), 0.2, 5)
    for number in range(1, 5):
        wait_for_attempt(tmp_path, number)
        ask("container_stop", container_id=container())
    assert call.get(timeout=30) == 5
    assert [(tmp_path / f"saved-{number}").read_text() for number in range(1, 5)] == ["drain"] * 4


def test_a_container_that_does_not_hear_is_killed_after_its_grace(tmp_path: Path) -> None:
    call = resumed.deaf.spawn(str(tmp_path), 5)
    for number in range(1, 5):
        wait_for_attempt(tmp_path, number)
        ask("container_stop", container_id=container())
    assert call.get(timeout=30) == 5


def test_a_container_that_is_stopped_twice_is_killed_at_once(tmp_path: Path) -> None:
    call = resumed.deaf_for_long.spawn(str(tmp_path), 2)
    wait_for_attempt(tmp_path, 1)
    stopped = container()
    for _ in range(2):
        ask("container_stop", container_id=stopped)
    wait_for_attempt(tmp_path, 2)
    assert call.get(timeout=20) == 2


def test_a_stopped_app_waits_until_its_runs_have_saved(tmp_path: Path) -> None:
    with resumed.other.run():
        resumed.long.spawn(str(tmp_path), 0.5, 9)
        wait_for_attempt(tmp_path, 1)
    assert (tmp_path / "saved-1").read_text() == "cancel"


def test_a_stopped_server_waits_until_runs_have_saved_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with entered(server_of_its_own()) as home:
        resumed.other.deploy()
        call = lorry.Function.from_name("resumed-other", "long").spawn(str(tmp_path), 0.5, 2)
        wait_for_attempt(tmp_path, 1)
        assert ask("server_stop", force=True)["grace"] == 30, "whoever waits for its end waits so much longer"
        home.stop()
        assert (tmp_path / "saved-1").read_text() == "drain"
        assert call.get(timeout=30) == 2
        drop(home)


def test_a_cancelled_run_saves(tmp_path: Path) -> None:
    call = resumed.patient.spawn(str(tmp_path), 0.5, 9)
    wait_for_attempt(tmp_path, 1)
    call.cancel()
    wait_until(lambda: (tmp_path / "saved-1").exists())
    assert (tmp_path / "saved-1").read_text() == "cancel"
    with pytest.raises(exception.CallCancelledError):
        call.get(timeout=10)


def test_three_deaths_are_three_over_a_restart_of_the_server(home: ServerHome, tmp_path: Path) -> None:
    call = resumed.deaf.spawn(str(tmp_path), 9)
    for number in range(1, 4):
        wait_for_attempt(tmp_path, number)
        if number == 3:
            kill_worker(home)
            assert ask("call_info", call=call.object_id)["finished"] == 0
        os.kill(attempts(tmp_path)[-1], signal.SIGKILL)
    with pytest.raises(exception.ContainerLostError, match="3 attempts in a row"):
        call.get(timeout=30)
    assert len(attempts(tmp_path)) == 3
