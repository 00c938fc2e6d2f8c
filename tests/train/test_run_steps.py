"""The Run object on a store in memory: what comes back, when it saves, what it says when something is wrong."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from memory_store import MemoryStore

from lorry.clock import ManualClock
from lorry.errors import (
    CorruptCheckpointError,
    Error,
    ExecutionError,
    InvalidError,
    StaleAttemptError,
    StorageFullError,
)
from lorry.train.batches import Batches
from lorry.train.options import Options
from lorry.train.policy import Every
from lorry.train.run import Run


class Lab:
    """A store and a folder; every `run` is a new attempt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.runs: list[Run] = []

    def run(
        self, *, restore: bool = True, every: object = 1, options: dict[str, Any] | None = None, **track: Any
    ) -> Run:
        run = Run(self.store, self.folder, Options(every=Every.parse(every), **(options or {})), clock=self.clock)
        self.runs.append(run)
        run.track(**track)
        if restore:
            run.restore()
        return run

    def metrics(self) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "checkpoint" not in row]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.store.gate.set()
    for run in lab.runs:  # its signal handlers would make this process deaf
        crash(run)


def step(run: Run, **metrics: Any) -> None:
    """A step, and its checkpoint if there is one, to the end."""
    run.step(**metrics)
    run._saver.wait()


def crash(run: Run) -> None:
    """What SIGKILL leaves: nothing is saved, nothing is said."""
    run._saver.wait()
    run._close()


class Counter:
    """The smallest thing with a state."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


# What comes back


def test_the_first_attempt_restores_nothing_and_the_second_goes_on(lab: Lab) -> None:
    counter, numbers = Counter(), numpy.random.default_rng(5)
    first = lab.run(counter=counter, numbers=numbers)
    assert not first.restored
    for _ in range(3):
        counter.value += 10
        drawn = numbers.random()
        step(first)
    after = numbers.random()
    crash(first)
    counter, numbers = Counter(), numpy.random.default_rng(99)
    second = lab.run(counter=counter, numbers=numbers)
    assert second.restored
    assert second.step_number == 3
    assert counter.value == 30
    assert numbers.random() == after != drawn
    crash(second)


def test_dicts_and_lists_are_restored_in_place(lab: Lab) -> None:
    def fresh() -> tuple[dict[str, Any], list[Any]]:
        return {"inner": {"a": 0}, "array": numpy.zeros(3)}, [1, {"x": 1}]

    state, rows = fresh()
    first = lab.run(state=state, rows=rows)
    state["inner"]["a"] = 7
    state["array"] += 2
    state["late"] = (1, {2, 3})
    rows[1]["x"] = 2
    rows.append(b"bytes")
    step(first)
    crash(first)
    state, rows = fresh()
    inner, array, row = state["inner"], state["array"], rows[1]
    crash(lab.run(state=state, rows=rows))
    assert inner == {"a": 7}
    assert array.tolist() == [2, 2, 2]
    assert state["inner"] is inner
    assert state["array"] is array
    assert state["late"] == (1, {2, 3})
    assert list(state) == ["inner", "array", "late"]
    assert rows == [1, {"x": 2}, b"bytes"]
    assert rows[1] is row


def test_shared_generators_go_on_where_the_checkpoint_was(lab: Lab) -> None:
    random.seed(1)
    numpy.random.seed(1)
    first = lab.run()
    step(first)
    expected = random.random(), numpy.random.rand()
    crash(first)
    random.seed(2)
    numpy.random.seed(2)
    crash(lab.run())
    assert (random.random(), numpy.random.rand()) == expected


def test_counter_based_randomness_depends_on_the_step_alone(lab: Lab) -> None:
    def draw() -> tuple[float, float]:
        return random.random(), float(numpy.random.rand())

    first = lab.run(options={"rng": "counter", "seed": 4})
    drawn = []
    for _ in range(3):
        drawn.append(draw())
        step(first)
    expected = draw()
    assert len(set(drawn)) == 3
    crash(first)
    random.seed(0)
    second = lab.run(options={"rng": "counter", "seed": 4})
    assert draw() == expected
    assert "lorry.rng" not in lab.store.manifest(lab.store.current.manifest).structure
    crash(second)


def test_what_was_saved_by_name_comes_back(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "booster.bin").write_bytes(b"trees")
    first = lab.run()
    first.save("booster", tmp_path / "booster.bin")
    first.save("table", numpy.arange(6).reshape(2, 3))
    first.save("raw", b"\0\1")
    step(first)
    crash(first)
    second = lab.run()
    assert second.load("booster") == b"trees"
    assert second.load("table").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.load("raw") == b"\0\1"
    assert second.load("nothing") is None
    crash(second)
    with pytest.raises(InvalidError, match=r"bytes, an array or a path, not int"):
        second.save("number", 5)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(lab: Lab) -> None:
    state = {"big": b"x" * 100_000}
    first = lab.run(state=state)
    step(first)
    state["big"] = b"y" * 100_000
    step(first)
    crash(first)
    newest = lab.store.manifest(lab.store.current.manifest)
    entry = next(entry for entry in newest.entries if entry.name == "state/big")
    lab.store.chunks[entry.chunks[0].sha256] = b"flipped"
    state = {"big": b""}
    second = lab.run(restore=False, state=state)
    with pytest.warns(UserWarning, match=r"newest checkpoint is damaged .*Going on from step 1"):
        assert second.restore()
    assert state["big"] == b"x" * 100_000
    crash(second)


def test_when_no_checkpoint_is_whole_nothing_starts_over_in_silence(lab: Lab) -> None:
    first = lab.run(state={"big": b"x" * 100_000})
    step(first)
    crash(first)
    lab.store.chunks = dict.fromkeys(lab.store.chunks, b"flipped")
    state = {"untouched": 1}
    second = lab.run(restore=False, state=state)
    with pytest.raises(CorruptCheckpointError, match="No checkpoint is whole"):
        second.restore()
    assert state == {"untouched": 1}


def test_another_environment_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lab.run()
    step(first)
    crash(first)
    monkeypatch.setattr("lorry.train.fingerprint.fingerprint", lambda: {"python": "2.7.18"})
    second = lab.run(restore=False)
    with pytest.warns(UserWarning, match=r"another environment.*python 3\.\d+\.\d+ → 2\.7\.18"):
        second.restore()
    crash(second)


# What is refused


def test_names_must_be_those_of_the_checkpoint(lab: Lab) -> None:
    first = lab.run(model={}, optimizer={})
    step(first)
    crash(first)
    other = lab.run(restore=False, model={}, scheduler={})
    with pytest.raises(InvalidError, match=r"not tracked: optimizer\. Tracked and not in it: scheduler\."):
        other.restore()


def test_only_things_with_a_state_are_tracked(lab: Lab) -> None:
    run = lab.run(restore=False)
    with pytest.raises(InvalidError, match=r'track\(rate=…\) got a builtins.float.*state=\{"rate": …\}'):
        run.track(rate=0.1)
    run.track(state={})
    with pytest.raises(InvalidError, match="the name is taken"):
        run.track(state={})


def test_what_cannot_be_kept_is_named_by_its_path_before_training_begins(lab: Lab) -> None:
    run = lab.run(restore=False, state={"config": [1, {"when": object()}]})
    with pytest.raises(InvalidError, match=r"state/config/1/when is a builtins\.object"):
        run.restore()


def test_the_order_is_track_restore_step_finish(lab: Lab) -> None:
    run = lab.run(restore=False)
    with pytest.raises(ExecutionError, match="after run.restore"):
        run.step()
    run.restore()
    with pytest.raises(ExecutionError, match="before run.restore"):
        run.track(state={})
    with pytest.raises(ExecutionError, match="once per attempt"):
        run.restore()
    run.finish()
    with pytest.raises(ExecutionError, match=r"before run\.finish"):
        run.step()


# When it saves


def test_every_n_steps(lab: Lab) -> None:
    run = lab.run(every=3)
    for _ in range(10):
        step(run)
    assert [manifest.step for manifest in lab.store.manifests.values()] == [3, 6, 9]
    crash(run)


def test_every_so_many_seconds(lab: Lab) -> None:
    run = lab.run(every="5m")
    for _ in range(10):
        lab.clock.advance(100)
        step(run)
    assert [manifest.step for manifest in lab.store.manifests.values()] == [3, 6, 9]
    crash(run)


def test_auto_saves_the_first_step_and_then_by_what_it_cost(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run(every="auto")
    monkeypatch.setattr(run._checkpoints._staging, "take", slow(lab.clock, run._checkpoints._staging.take, 0.5))
    for _ in range(1000):
        lab.clock.advance(1)
        step(run)
    steps = [manifest.step for manifest in lab.store.manifests.values()]
    assert steps[0] == 1
    assert 290 <= steps[1] - steps[0] <= 300  # √(2 · 0.5 s · 24 h) = 294 s
    crash(run)


def slow(clock: ManualClock, function: Any, seconds: float) -> Any:
    def slowly(*arguments: Any) -> Any:
        clock.advance(seconds)
        return function(*arguments)

    return slowly


def test_attempts_that_were_cut_off_make_checkpoints_more_frequent(lab: Lab) -> None:
    first = lab.run()
    step(first)
    crash(first)
    for _ in range(3):
        crash(lab.run())
    last = lab.run(every=100)
    assert last.interruptions == 4
    last.step()
    last.finish()
    assert lab.run().interruptions == 4, "a run that finished was not interrupted"


def test_a_checkpoint_that_is_due_while_one_is_written_is_skipped_and_counted(lab: Lab) -> None:
    lab.store.gate.clear()
    run = lab.run()
    for _ in range(4):
        run.step()
    assert run.skipped == 3
    lab.store.gate.set()
    run._saver.wait()
    step(run)
    assert [manifest.step for manifest in lab.store.manifests.values()] == [1, 5]
    crash(run)


def test_training_that_goes_on_does_not_change_what_is_being_written(lab: Lab) -> None:
    lab.store.gate.clear()
    state = {"array": numpy.zeros(1 << 17), "small": numpy.zeros(4), "list": [0]}
    run = lab.run(state=state)
    run.step()
    for item in state.values():
        item[0] = 99  # type: ignore[index]
    lab.store.gate.set()
    crash(run)
    state = {"array": numpy.ones(1 << 17), "small": numpy.ones(4), "list": [1]}
    crash(lab.run(state=state))
    assert not state["array"].any()  # type: ignore[attr-defined]
    assert not state["small"].any()  # type: ignore[attr-defined]
    assert state["list"] == [0]


def test_the_end_saves_the_last_step_once(lab: Lab) -> None:
    with lab.run(every=100) as run:
        run.step()
        run.step()
    assert [manifest.step for manifest in lab.store.manifests.values()] == [2]
    run.finish()
    with lab.run(every=100) as again:
        assert again.step_number == 2
    assert len(lab.store.manifests) == 1


def test_an_exception_saves_nothing_for_the_state_may_be_half_of_a_step(lab: Lab) -> None:
    with pytest.raises(ZeroDivisionError), lab.run(every=100) as run:
        run.step()
        raise ZeroDivisionError
    assert not lab.store.manifests


def test_a_batch_whose_step_was_not_called_is_done_again(lab: Lab) -> None:
    def data() -> Batches:
        return Batches(list(range(40)), batch=4, shuffle=False)

    first = data()
    run = lab.run(every=3, data=first)
    assert run.total_steps == 10
    for batch in first:
        if batch[0] == 16:
            break  # it was taken, and nothing was done with it as far as anybody knows
        step(run)
    with pytest.warns(UserWarning, match="a batch was taken.*newest checkpoint is that of step 3;"):
        run.finish()
    second = data()
    again = lab.run(every=3, data=second)
    assert again.step_number == 3
    assert next(iter(second))[0] == 12
    crash(again)


def test_a_break_at_the_safe_point_and_a_loop_s_own_end_save_the_last_step(lab: Lab) -> None:
    for stop_at in (4, 10):
        data = Batches(list(range(40)), batch=4, shuffle=False)
        with lab.run(every=1000, data=data) as run:
            for _batch in data:
                run.step()
                if run.step_number == stop_at:
                    break
        assert lab.store.current is not None
        assert lab.store.current.step == stop_at


def test_manifests_to_keep_are_told_to_the_store(lab: Lab) -> None:
    run = lab.run(options={"keep_last": 2})
    for _ in range(4):
        lab.clock.advance(700)
        step(run)
    ids = list(lab.store.manifests)
    assert lab.store.kept[-1] == set(ids[-2:])
    crash(run)


# When saving fails


def test_a_save_that_fails_warns_once_and_the_third_ends_the_training(lab: Lab) -> None:
    def full() -> None:
        raise StorageFullError("the disk is full")

    lab.store.before_put = full
    run = lab.run()
    step(run)
    with pytest.warns(UserWarning, match="could not be saved; training goes on and tries again: the disk is full"):
        step(run)
    step(run)
    with pytest.raises(Error, match="3 checkpoints in a row could not be saved.*the disk is full"):
        run.step()
    crash(run)


def test_a_save_that_works_again_is_forgiven(lab: Lab) -> None:
    broken = iter([True, True, False, True, True, False])

    def sometimes() -> None:
        if next(broken):
            raise StorageFullError("the disk is full")

    lab.store.before_put = sometimes
    run = lab.run()
    with pytest.warns(UserWarning, match="tries again"):  # noqa: PT031
        for _ in range(6):
            step(run)
    lab.store.before_put = lambda: None
    run.finish()
    assert [manifest.step for manifest in lab.store.manifests.values()] == [3, 6]


def test_an_attempt_that_was_replaced_stops_at_its_next_step(lab: Lab) -> None:
    old = lab.run()
    step(old)
    new = lab.run()
    step(old)
    with pytest.raises(StaleAttemptError):
        old.step()
    crash(old)
    crash(new)
    assert lab.store.current is not None
    assert lab.store.current.step == 1


# Metrics


def test_metrics_are_lines_of_json_by_step(lab: Lab) -> None:
    run = lab.run(every=100)
    run.step(loss=2.5, note="warm-up")
    run.step(loss=numpy.float32(1.5))
    run.finish()
    first, second = lab.metrics()
    assert first == {"step": 1, "time": lab.clock.wall(), "loss": 2.5, "note": "warm-up"}
    assert (second["step"], second["loss"]) == (2, 1.5)
    with pytest.raises(InvalidError, match="the row has that already"):
        lab.run().step(time=5)


def test_a_loss_that_is_no_number_any_more_is_valid_json(lab: Lab) -> None:
    run = lab.run(every=10)
    worst = {"loss": float("nan"), "norm": float("inf"), "parts": [1.5, float("-inf")], "lr": 0.5}
    step(run, **worst)
    step(run, loss=numpy.float32("nan"))
    run.finish()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (lab.folder / "metrics.jsonl").read_text().splitlines()
    first, second, *_ = (json.loads(line, parse_constant=refuse) for line in lines)
    assert {name: first[name] for name in worst} == {
        "loss": "NaN",
        "norm": "Infinity",
        "parts": [1.5, "-Infinity"],
        "lr": 0.5,
    }
    assert second["loss"] == "NaN"


def test_metrics_for_which_the_disk_has_no_room_wait_and_end_no_training(lab: Lab) -> None:
    run = lab.run(every=1000)
    step(run, note="x" * 100)
    run._metrics.flush()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))
    try:
        for number in range(2, 6):
            lab.clock.advance(10)
            step(run, note="x" * 100)
            assert [row["step"] for row in lab.metrics()] == [1], number
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    run._metrics.flush()
    assert [row["step"] for row in lab.metrics()] == [1, 2, 3, 4, 5]


def test_metrics_are_cut_back_to_the_restored_step(lab: Lab) -> None:
    first = lab.run(every=2)
    for number in range(1, 6):
        step(first, loss=float(number))
    first._metrics.flush()
    with (lab.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "los')  # cut short by a crash
    crash(first)
    second = lab.run(every=2)
    step(second, loss=-5.0)
    second.finish()
    assert [(row["step"], row["loss"]) for row in lab.metrics()] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, -5)]


def test_what_a_checkpoint_cost_is_a_metric(lab: Lab) -> None:
    run = lab.run(state={"big": b"x" * 100_000})
    step(run)
    run.finish()
    rows = [json.loads(line) for line in (lab.folder / "metrics.jsonl").read_text().splitlines()]
    costs = next(row["checkpoint"] for row in rows if "checkpoint" in row)
    assert costs["step"] == 1
    assert costs["bytes"] >= costs["new_bytes"] >= 100_000
    assert costs.keys() == {"step", "stall", "persist", "bytes", "new_bytes", "manifest"}
