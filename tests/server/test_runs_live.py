"""Runs over the real socket: a container that saves, and a server that looks after it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import run_by_hand
from run_orders import Orders, run_of
from server_asking import ask
from server_home import ServerHome, entered, processes_of, wait_until

import lorry
from lorry import exception


@pytest.fixture(scope="module", autouse=True)
def home() -> Iterator[ServerHome]:
    root = Path(tempfile.mkdtemp(prefix="lorry-own-"))
    home = ServerHome(root)
    with entered(home):
        with run_by_hand.app.run():
            yield home
    home.stop()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_run(home: ServerHome) -> Orders:
    """One for all tests that leave it running."""
    return Orders(run_by_hand.obey.spawn().object_id)


def host_pid(home: ServerHome, orders: Orders) -> int:
    """Of the program in the container that works on it."""
    (attempt,) = [row for row in orders.show()["attempt_rows"] if row["ended"] is None]
    return processes_of(home.state / "containers" / attempt["container_id"])[-1]


def test_a_run_saves_and_is_done() -> None:
    call = run_by_hand.obey.spawn("x")
    orders = Orders(call.object_id)
    assert orders.show()["state"] == "running"
    manifest = orders.do("save", step=5)
    orders.do("tell", step=7)
    shown = orders.show()
    assert (shown["head_step"], shown["step"], shown["total_steps"], shown["phase"]) == (5, 7, 100, "training")
    assert shown["eta"] == pytest.approx(93 * 0.5)
    orders.give("finish", value=3)
    assert call.get() == 3
    shown = orders.show()
    assert (shown["state"], shown["attempts"], shown["interruptions"], shown["error"]) == ("done", 1, 0, "")
    (attempt,) = shown["attempt_rows"]
    assert (attempt["ended"], attempt["token"]) == ("finished", 1)
    (checked,) = ask("run_verify", run=orders.run_id)["checkpoints"]
    assert (checked["manifest"], checked["step"], checked["damaged"]) == (manifest, 5, [])


def test_slices_follow_each_other_and_each_goes_on_from_the_last(home: ServerHome) -> None:
    call = run_by_hand.obey.spawn()
    orders = Orders(call.object_id)
    begun = orders.do("begin")
    assert (begun["attempt"], begun["head"], begun["interruptions"]) == (1, None, 0)
    saved = orders.do("save", step=10)
    (attempt,) = orders.show()["attempt_rows"]
    ask("container_stop", container_id=attempt["container_id"])  # it saves step 1000 and ends
    wait_until(lambda: len(orders.show()["attempt_rows"]) == 2, 20)
    begun = orders.do("begin")
    assert begun["attempt"] == 2
    assert (begun["head"]["step"], begun["head"]["token"]) == (1000, 2)
    assert begun["head"]["manifest"] != saved
    assert begun["token"] > 3
    shown = orders.show()
    assert [row["ended"] for row in shown["attempt_rows"]] == ["continue", None]
    assert (shown["slices"], shown["interruptions"]) == (1, 0)
    assert shown["attempt_rows"][0]["last_step"] == 1000
    assert shown["attempt_rows"][0]["reason"] == "a person stopped it"
    assert shown["error"] == ""
    orders.give("finish", value=None)
    call.get()


def test_a_run_that_is_killed_goes_on_and_its_attempt_says_why(home: ServerHome) -> None:
    call = run_by_hand.obey.spawn()
    orders = Orders(call.object_id)
    orders.do("save", step=10)
    os.kill(host_pid(home, orders), signal.SIGKILL)
    begun = orders.do("begin")
    assert (begun["head"]["step"], begun["interruptions"], begun["attempt"]) == (10, 1, 2)
    killed, _ = orders.show()["attempt_rows"]
    assert (killed["ended"], killed["last_step"]) == ("killed", 10)
    assert "SIGKILL" in killed["reason"]
    orders.give("finish", value=None)
    call.get()


def test_an_error_is_kept_with_its_traceback_and_the_run_can_be_resumed() -> None:
    call = run_by_hand.obey.spawn(41)
    orders = Orders(call.object_id)
    orders.do("save", step=3)
    orders.give("fail", text="out of luck")  # in each attempt: the first has saved, three more have not
    with pytest.raises(ValueError, match="out of luck"):
        call.get(timeout=50)
    shown = orders.show()
    assert shown["state"] == "failed"
    assert shown["error"].startswith("Traceback (most recent call last):")
    assert shown["error"].endswith("ValueError: out of luck")
    assert shown["attempts"] == 4
    orders.withdraw()
    resumed = ask("run_resume", run=orders.run_id)
    assert resumed["run_id"] == orders.run_id
    assert resumed["call"] != call.object_id
    assert orders.do("begin")["head"]["step"] == 3
    orders.give("finish", value="done")
    assert lorry.FunctionCall.from_id(resumed["call"]).get(timeout=30) == "done"
    assert orders.show()["state"] == "done"
    wait_until(lambda: not [app for app in ask("app_list")["apps"] if app["app_id"] == resumed["app_id"]], 20)


def test_the_input_of_a_resumed_run_is_the_one_it_began_with() -> None:
    """Small, large (it lies in a file of its own), and one of many that a map sent."""
    large = b"x" * 300_000
    spawned = {value: run_by_hand.echoes.spawn(value) for value in (b"small", large)}
    mapped = run_by_hand.echoes.spawn_map([b"mapped"])
    for value, call in [*spawned.items(), (b"mapped", mapped)]:
        orders = Orders(call.object_id)
        ask("run_cancel", run=orders.run_id)
        with pytest.raises(exception.CallCancelledError):
            call.get(timeout=30)
        resumed = ask("run_resume", run=orders.run_id)
        orders.give("finish", value=None)
        assert lorry.FunctionCall.from_id(resumed["call"]).get(timeout=30) == value


def test_cancel_answers_when_the_attempt_has_saved() -> None:
    call = run_by_hand.obey.spawn()
    orders = Orders(call.object_id)
    orders.do("save", step=10)
    shown = ask("run_cancel", run=orders.run_id)
    assert (shown["state"], shown["head_step"], shown["step"]) == ("cancelled", 1000, 1000)
    (attempt,) = orders.show()["attempt_rows"]
    assert (attempt["ended"], attempt["last_step"]) == ("cancelled", 1000)
    with pytest.raises(exception.CallCancelledError):
        call.get(timeout=10)
    with pytest.raises(exception.InvalidError, match="is cancelled already"):
        ask("run_cancel", run=orders.run_id)


def test_a_cancelled_run_is_saving_until_it_has_and_is_resumed_then() -> None:
    call = run_by_hand.obey.spawn()
    orders = Orders(call.object_id)
    orders.give("dawdle")
    wait_until((orders.folder / "dawdles").exists)
    call.cancel()
    with pytest.raises(exception.CallCancelledError):
        call.get(timeout=10)
    assert orders.wait_for(phase="saving")["state"] == "cancelled"
    with ThreadPoolExecutor(1) as pool:
        resumed = pool.submit(ask, "run_resume", run=orders.run_id)
        assert orders.show()["phase"] == "saving"
        (orders.folder / "enough").touch()
        assert resumed.result(30)["run_id"] == orders.run_id
    begun = orders.do("begin")
    assert (begun["head"]["step"], begun["interruptions"]) == (1000, 0)
    shown = ask("run_cancel", run=orders.run_id)
    assert (shown["state"], shown["phase"]) == ("cancelled", None)


def test_one_run_of_a_map_is_cancelled_and_the_others_go_on() -> None:
    call = run_by_hand.obey.spawn_map(["a", "b"])
    wait_until(lambda: len([run for run in ask("run_list")["runs"] if run["call"] == call.object_id]) == 2, 30)
    with pytest.raises(exception.InvalidError, match="several runs"):
        ask("run_show", run=call.object_id)
    runs = [run["run_id"] for run in ask("run_list")["runs"] if run["call"] == call.object_id]
    ask("run_cancel", run=runs[0])
    assert ask("run_show", run=runs[1])["state"] == "running"
    other = Orders(runs[1])
    other.give("finish", value=1)
    outcomes = []
    for index in range(2):
        try:
            outcomes.append(call.get(timeout=30, index=index))
        except exception.CallCancelledError:
            outcomes.append("cancelled")
    assert sorted(map(str, outcomes)) == ["1", "cancelled"]


@pytest.mark.parametrize("damage", ["bit", "chunk", "short", "gone", "link", "fifo", "huge", "folder"])
def test_a_checkpoint_that_is_not_whole_does_not_become_the_head(shared_run: Orders, damage: str) -> None:
    whole = shared_run.do("save", step=10)
    refused = shared_run.do("save", step=11, content=damage, damage=damage)
    assert refused["error"] == "CorruptCheckpointError"
    shown = shared_run.show()
    assert (shown["head_step"], shown["state"]) == (10, "running")
    found = {row["step"]: row for row in ask("run_verify", run=shared_run.run_id)["checkpoints"]}
    assert found[10]["damaged"] == [], whole


@pytest.mark.parametrize("lie", [{"run_id": "ru-other"}, {"token": 99}, {"step": 12}])
def test_a_manifest_of_something_else_does_not_become_the_head(shared_run: Orders, lie: dict[str, object]) -> None:
    shared_run.do("save", step=10)
    assert shared_run.do("save", step=11, lie=lie)["error"] == "CorruptCheckpointError"
    assert shared_run.show()["head_step"] == 10


def test_nothing_that_a_container_says_of_itself_counts(shared_run: Orders) -> None:
    begun = shared_run.do("begin")
    saved = shared_run.do("save", step=10)
    told = {"run_id": begun["run_id"], "token": begun["token"], "manifest": saved, "step": 10}
    assert shared_run.do("commit", **told) is None, "asked again, for the answer was lost"
    for lie in ({"run_id": "ru-" + 32 * "0"}, {"token": begun["token"] + 1}, {"token": begun["token"] - 1}):
        assert shared_run.do("commit", **{**told, **lie})["error"] == "StaleAttemptError"
    for nonsense in ({"manifest": "../../x"}, {"step": -1}, {"token": "1"}):
        assert shared_run.do("commit", **{**told, **nonsense})["error"] == "InvalidError"
    with pytest.raises(exception.InvalidError, match="for code in a container"):
        ask("run_begin")


def test_verify_names_every_damaged_file(shared_run: Orders) -> None:
    content = str(shared_run.number)  # other bytes than those of other tests
    shared_run.do("save", step=20, content=content)
    manifest = shared_run.do("save", step=21, content=content + "!")
    (path,) = shared_run.folder.glob(f"m/21-{manifest}.json")
    chunks = sorted(shared_run.folder.glob("chunks/*/*"), key=lambda chunk: chunk.stat().st_mtime)
    data = bytearray(chunks[-1].read_bytes())
    data[0] ^= 1
    chunks[-1].write_bytes(data)
    found = {row["manifest"]: row for row in ask("run_verify", run=shared_run.run_id)["checkpoints"]}
    assert found[manifest]["damaged"] == [str(chunks[-1].relative_to(shared_run.folder))]
    path.write_bytes(b"{}")
    found = {row["manifest"]: row for row in ask("run_verify", run=shared_run.run_id)["checkpoints"]}
    assert found[manifest]["damaged"] == [f"m/{path.name}"]
    path.unlink()


def test_curves_and_checkpoints_come_from_what_training_wrote(shared_run: Orders) -> None:
    for step in range(30):
        shared_run.do("note", step=step, time=1.0, loss=1 / (step + 1))
    row = {"step": 29, "stall": 0.1, "persist": 0.2, "bytes": 100, "new_bytes": 60, "manifest": "m"}
    shared_run.do("note", step=29, time=2.0, checkpoint=row)
    with (shared_run.folder / "metrics.jsonl").open("a") as file:
        file.write('nonsense\n[1]\n{"step": "x"}\n' + "[" * 10_000 + '\n{"step": 30, "cut')
    shown = ask("run_show", run=shared_run.run_id, points=5)
    assert [row["step"] for row in shown["metrics"]] == [0, 7, 14, 21, 29]
    (noted,) = [row for row in shown["checkpoints"] if row["manifest"] == "m"]
    assert noted == {
        "step": 29,
        "created_at": 2.0,
        "stall": 0.1,
        "persist": 0.2,
        "total_bytes": 100,
        "new_bytes": 60,
        "manifest": "m",
    }
    (listed,) = [run for run in ask("run_list")["runs"] if run["run_id"] == shared_run.run_id]
    assert listed["metrics"]["step"] == 29


def test_the_newest_checkpoint_is_seen_before_training_has_noted_it(shared_run: Orders) -> None:
    manifest = shared_run.do("save", step=40, content="four")
    (row,) = [row for row in shared_run.show()["checkpoints"] if row["manifest"] == manifest]
    assert row.pop("created_at") == pytest.approx(time.time(), abs=30)
    unknown = {"persist": None, "new_bytes": None}
    assert row == {"step": 40, "stall": 0.0, "total_bytes": 4, "manifest": manifest, **unknown}
    next(shared_run.folder.glob(f"m/40-{manifest}.json")).unlink()
    (row,) = [row for row in shared_run.show()["checkpoints"] if row["manifest"] == manifest]
    assert row == dict.fromkeys(row) | {"step": 40, "manifest": manifest}
    shared_run.do("save", step=41)
    shared_run.do("note", step=41, time=2.0, checkpoint={"step": 41, "manifest": shared_run.do("save", step=41)})
    assert [row["step"] for row in shared_run.show()["checkpoints"]].count(41) == 1


@pytest.mark.parametrize("thing", ["link", "fifo", "folder", "nonsense", "huge", "deep"])
def test_garbage_instead_of_progress_is_passed_over(shared_run: Orders, thing: str) -> None:
    shared_run.do("tell", step=3)
    place = shared_run.folder / "progress.json"
    place.unlink()
    if thing == "link":
        place.symlink_to("/dev/zero")
    elif thing == "fifo":
        os.mkfifo(place)
    elif thing == "folder":
        place.mkdir()
    else:
        place.write_text({"nonsense": '{"token": 1, "at": NaN}', "huge": " " * 100_000, "deep": "[" * 60_000}[thing])
    shown = shared_run.show()
    assert (shown["total_steps"], shown["state"]) == (None, "running")
    place.rmdir() if thing == "folder" else place.unlink()


def test_max_attempts_ends_the_run(home: ServerHome) -> None:
    call = run_by_hand.obey_twice.spawn()
    orders = Orders(call.object_id)
    for step in (1, 2):
        orders.do("save", step=step)
        os.kill(host_pid(home, orders), signal.SIGKILL)
        wait_until(lambda: all(row["ended"] for row in orders.show()["attempt_rows"]), 20)
        if step == 1:
            wait_until(lambda: orders.show()["attempts"] == 2, 20)
    with pytest.raises(exception.ContainerLostError, match=r"max_attempts=2.*SIGKILL.*lorry runs resume ru-"):
        call.get(timeout=30)
    shown = orders.wait_for(state="failed")
    assert (shown["attempts"], shown["head_step"]) == (2, 2)
    ask("run_resume", run=orders.run_id)
    assert orders.do("begin")["head"]["step"] == 2
    ask("run_cancel", run=orders.run_id)


def test_a_deadline_lets_the_attempt_save_and_its_checkpoint_stays() -> None:
    call = run_by_hand.obey_until.spawn()
    orders = Orders(call.object_id)
    orders.do("save", step=7)
    with pytest.raises(
        exception.FunctionTimeoutError,
        match=r"deadline of 2 s is over at step 1,000. Its checkpoint of step 1,000 is kept: lorry runs resume ru-",
    ):
        call.get(timeout=30)
    shown = orders.show()
    assert (shown["state"], shown["head_step"], shown["attempts"], shown["slices"]) == ("failed", 1000, 1, 0)
    assert "deadline" in shown["error"]
    (attempt,) = shown["attempt_rows"]
    assert (attempt["ended"], attempt["reason"]) == ("cancelled", "the run's deadline is over")


def test_a_deadline_that_no_attempt_can_save_before_names_what_there_is(home: ServerHome) -> None:
    call = run_by_hand.obey_until.spawn()
    orders = Orders(call.object_id)
    orders.do("save", step=7)
    orders.give("dawdle")  # until it is killed, five seconds after the deadline
    with pytest.raises(exception.FunctionTimeoutError, match=r"is over at step 7\. Its checkpoint of step 7 is kept"):
        call.get(timeout=30)
    assert orders.show()["attempt_rows"][0]["ended"] == "killed"


def test_a_run_that_ends_by_itself_within_the_grace_after_its_deadline_is_done() -> None:
    call = run_by_hand.obey_until.spawn()
    orders = Orders(call.object_id)
    orders.give("dawdle")
    orders.give("finish", value=3)
    (attempt,) = orders.show()["attempt_rows"]
    stopping = attempt["container_id"], "stopping"
    wait_until(
        lambda: stopping in [(row["container_id"], row["state"]) for row in ask("container_list")["containers"]], 20
    )
    (orders.folder / "enough").touch()
    assert call.get(timeout=30) == 3
    shown = orders.wait_for(state="done")
    assert (shown["error"], shown["attempts"], shown["attempt_rows"][0]["ended"]) == ("", 1, "finished")


def test_other_functions_have_no_run() -> None:
    assert "is no resumable function" in run_by_hand.plain.remote()


def test_runs_are_listed_and_found() -> None:
    call = run_by_hand.obey.spawn()
    run = run_of(call.object_id)
    assert ask("run_show", run=run["run_id"][:20])["run_id"] == run["run_id"]
    assert run["run_id"] in [row["run_id"] for row in ask("run_list", app_id=run["app_id"])["runs"]]
    assert len(ask("run_list", limit=1)["runs"]) == 1
    for unknown in ("ru-zz", "fc-" + 32 * "0"):
        with pytest.raises(exception.NotFoundError, match="lorry runs list --all"):
            ask("run_show", run=unknown)
    ask("run_cancel", run=call.object_id)
    assert run["run_id"] not in [row["run_id"] for row in ask("run_list")["runs"]]
    assert run["run_id"] in [row["run_id"] for row in ask("run_list", all=True)["runs"]]
