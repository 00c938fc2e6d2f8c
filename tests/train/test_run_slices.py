"""Attempts in slices: they save and yield in time, whatever steps and saves cost; slices that are too short are refused
with the arithmetic, and no others."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slicing import Slices

import lorry
from lorry.errors import AlreadyExistsError, InvalidError, SliceTooShortError, YieldSlice
from lorry.model.function import ResumePolicy
from lorry.runtime import slice as slice_module
from lorry.runtime.slice import Slice
from lorry.train.policy import Costs, can_progress, shortest
from lorry.train.server_heads import Past
from lorry.wire import identity
from lorry.wire.identity import ContainerIdentity


@pytest.fixture
def slices(tmp_path: Path) -> Iterator[Slices]:
    slices = Slices(tmp_path)
    yield slices
    slices.close()


# In time


def test_an_attempt_yields_before_its_slice_ends_with_every_step_saved(slices: Slices) -> None:
    state = {"sum": 0}
    run = slices.attempt(state=state)
    assert slices.slice.active
    assert slices.train(run) == "slice"
    assert slices.slice.yielded == "slice"
    assert not slices.slice.active
    assert slices.head == run.step_number
    assert slices.clock.now <= slices.end
    assert run.step_number >= 48, "60 s, less 5 for the start, 3 for a step and its save, 2 for safety, and 1 save"
    again = slices.attempt(state=state)
    assert (again.restored, again.step_number) == (True, slices.head)


def test_whoever_goes_on_after_the_yield_is_told_again(slices: Slices) -> None:
    run = slices.attempt()
    slices.train(run)
    for _ in range(2):
        with pytest.raises(YieldSlice):
            run.step()
    assert slices.head == run.step_number
    run.finish()  # nothing is left to do


@pytest.mark.parametrize("reason", ["slice", "drain", "cancel"])
def test_an_attempt_that_is_asked_to_end_does_so_at_the_next_safe_point(slices: Slices, reason: str) -> None:
    run = slices.attempt(every=1000)
    assert slices.train(run, most=5) is None
    slices.slice.ask(reason)
    assert slices.train(run) == reason
    assert slices.slice.yielded == reason
    assert slices.head == run.step_number == 6


def test_a_signal_to_a_container_is_a_request_to_end_and_no_error(slices: Slices) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run = slices.attempt(every=1000)
    for _ in range(2):  # a second one changes nothing: who is in a hurry kills
        os.kill(os.getpid(), signal.SIGTERM)
    assert slices.train(run) == "drain"
    assert slices.head == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_finish_saves_and_leaves_the_slice_to_what_follows(slices: Slices) -> None:
    run = slices.attempt(every=1000)
    slices.train(run, most=3)
    run.finish()
    assert slices.head == 3
    assert not slices.slice.active
    assert slices.slice.yielded is None


def test_the_function_s_end_saves_the_last_step_and_its_result_counts(slices: Slices) -> None:
    slices.train(slices.attempt(every=1000), most=3)

    def returns() -> str:
        slices.slice.ask("slice")  # too late to matter
        return "result"

    assert slices.slice.watched(returns)() == "result"
    assert slices.head == 3
    assert slices.slice.yielded is None


def test_an_exception_saves_nothing_more(slices: Slices) -> None:
    run = slices.attempt(every=1000)
    slices.train(run, most=3)

    def fails() -> None:
        raise ZeroDivisionError

    head = slices.head
    with pytest.raises(ZeroDivisionError):
        slices.slice.watched(fails)()
    assert slices.head == head < 3
    assert not slices.slice.active


def test_a_wall_clock_that_jumps_changes_nothing(slices: Slices, tmp_path: Path) -> None:
    calm = slices.train(slices.attempt(past=Past(attempt=1, interruptions=0, seconds=0.0))), slices.head
    other = Slices(tmp_path / "other")
    (tmp_path / "other").mkdir()
    run = other.attempt(past=Past(attempt=1, interruptions=0, seconds=0.0))
    for jump in (1e9, -2e9, 3e8):
        other.train(run, most=7)
        other.clock.offset += jump
    assert (other.train(run), other.head) == calm
    assert other.clock.now <= other.end
    other.close()


def test_no_save_is_begun_that_would_leave_no_time_for_the_last_one(tmp_path: Path) -> None:
    slices = Slices(tmp_path, limit=60, persist=12.0)
    run = slices.attempt(every="10s")
    assert slices.train(run) == "slice"
    assert slices.clock.now <= slices.end
    assert slices.head == run.step_number
    slices.close()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.floats(0, 20),
    warm_up=st.floats(0, 15),
    step=st.floats(0.5, 10),
    stall=st.floats(0, 3),
    persist=st.floats(0, 12),
    limit=st.floats(5, 90),
    every=st.sampled_from(["auto", 1, 7, "5s", "1m"]),
)
def test_no_slice_ends_without_a_save_when_the_costs_hold(
    tmp_path: Path,
    start: float,
    warm_up: float,
    step: float,
    stall: float,
    persist: float,
    limit: float,
    every: object,
) -> None:
    """Three slices of one run. From the second on all costs are known, and then every slice in which one step and one
    save fit ends in time, with all its steps saved; in the first one, only what was committed must hold."""
    slices = Slices(tmp_path, limit=limit, stall=stall, persist=persist)
    costs = Costs(start=start, step=warm_up + step, stall=stall, persist=persist, exit=0.5)
    for attempt in range(3):
        before = slices.head
        run = slices.attempt(start=start, every=every)
        slices.clock.advance(warm_up)
        try:
            assert slices.train(run, step) == "slice"
        except SliceTooShortError:
            assert not can_progress(limit, costs).yes
            break
        assert slices.head == run.step_number > before
        if attempt > 0 and can_progress(limit, costs).yes:
            assert slices.clock.now <= slices.end
    slices.close()


# Too short


def test_a_slice_that_is_too_short_is_refused_with_the_arithmetic_and_nothing_is_lost(tmp_path: Path) -> None:
    slices = Slices(tmp_path, limit=10, stall=1.0, persist=2.0)
    assert slices.train(slices.attempt(start=5), step=4.0) == "slice", "the first attempt may have paid for others"
    assert slices.train(slices.attempt(start=5), step=4.0) == "slice", "the machine may have been busy"
    run = slices.attempt(start=5)
    with pytest.raises(SliceTooShortError) as refused:
        slices.train(run, step=4.0)
    assert str(refused.value) == (
        "A slice of 10.0 s cannot make one step and save it: start 5.0 s + step 4.0 s + save 3.0 s + exit 0.5 s + "
        "margin 2.0 s = 14.5 s. Raise timeout= to at least 15 s; several times that, and most of each slice is "
        "training. What was done is saved"
    )
    assert slices.slice.yielded is None
    assert slices.head == run.step_number == 3
    with pytest.raises(SliceTooShortError):
        run.step()
    slices.close()


def test_the_platform_s_clock_says_the_same_when_the_first_step_passes_the_end(tmp_path: Path) -> None:
    slices = Slices(tmp_path, limit=10)
    for attempt in range(3):
        run = slices.attempt(start=1)
        slices.clock.advance(30)
        slices.slice.ask("slice")
        with pytest.raises(SliceTooShortError if attempt == 2 else YieldSlice):
            run.step()
    assert slices.head == 3
    slices.close()


@pytest.mark.parametrize("asked", ["drain", "cancel"])
def test_what_the_platform_wants_is_no_verdict_on_the_slice(tmp_path: Path, asked: str) -> None:
    slices = Slices(tmp_path, limit=10, persist=9)
    for _ in range(3):
        run = slices.attempt(start=5)
        slices.slice.ask(asked)
        assert slices.train(run) == asked
    slices.close()


def test_a_slow_first_step_is_no_reason_to_refuse_or_to_stop_after_it(tmp_path: Path) -> None:
    """It compiles; those that follow are quick."""
    slices = Slices(tmp_path, limit=60)
    done = 0
    for _ in range(4):
        run = slices.attempt(start=10)
        slices.clock.advance(30)
        assert slices.train(run, step=0.1) == "slice"
        assert run.step_number - done > 100
        done = run.step_number
    slices.close()


def test_a_run_that_had_room_before_is_not_refused_for_one_slow_start(tmp_path: Path) -> None:
    slices = Slices(tmp_path, limit=60)
    slices.train(slices.attempt(start=5))
    slices.train(slices.attempt(start=5))
    for _ in range(3):
        before = slices.head
        assert slices.train(slices.attempt(start=59)) == "slice"  # somebody else needs the machine
        assert slices.head == before + 1
    slices.limit = 30  # it never had room in so short a slice
    with pytest.raises(SliceTooShortError):
        slices.train(slices.attempt(start=29))
    slices.close()


@given(
    st.builds(Costs, **{name: st.floats(0, 5000) for name in ("start", "step", "stall", "persist", "exit")}),
)
def test_the_least_timeout_that_is_named_is_enough_and_no_second_too_long(costs: Costs) -> None:
    least = shortest(costs)
    assert can_progress(math.nextafter(least, math.inf) * (1 + 1e-12), costs).yes
    assert not can_progress(least * (1 - 1e-9) - 1e-6, costs).yes


# What it knows of itself


def test_the_server_s_count_of_attempts_and_interruptions_counts(slices: Slices) -> None:
    run = slices.attempt(past=Past(attempt=7, interruptions=3, seconds=5_000.0))
    assert (run.attempt, run.interruptions) == (7, 3)
    assert run._checkpoints._trained(slices.clock.now) == 5_000


def test_progress_is_a_file_that_says_how_far_it_is(slices: Slices) -> None:
    run = slices.attempt()
    file = slices.folder / "progress.json"

    def said() -> dict[str, Any]:
        return dict(json.loads(file.read_text()))

    assert said() == {
        "token": 1,
        "step": 0,
        "total": None,
        "at": slices.clock.now,
        "phase": "waiting",
        "seconds_per_step": 0.0,
        "q99": 0.0,
        "yield_at": None,
        "restore_seconds": 0.0,
    }
    run.total_steps = 1000
    slices.train(run, step=0.5, most=20)
    found = said()
    assert (found["phase"], found["total"]) == ("training", 1000)
    assert 18 <= found["step"] <= 20
    assert found["seconds_per_step"] == pytest.approx(0.5)
    assert found["q99"] == pytest.approx(0.5)
    assert slices.slice.began + 50 < found["yield_at"] < slices.end
    assert slices.clock.now - found["at"] <= 1.0
    slices.clock.advance(300)
    run.heartbeat()
    assert said()["at"] == slices.clock.now
    written = file.stat().st_ino
    slices.clock.advance(0.9)
    run.heartbeat()
    assert file.stat().st_ino == written, "at most once a second"
    slices.slice.ask("drain")
    with pytest.raises(YieldSlice):
        run.step()
    assert said()["phase"] == "waiting"
    assert said()["step"] == 21


# lorry.run() in containers


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "container", ContainerIdentity("socket", "co-1", "token", "ap-1", "app.py"))
    monkeypatch.delenv("LORRY_RUN_DIR", raising=False)


def test_in_a_function_that_is_not_resumable_it_says_what_to_do(container: None, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"resumable=True.* or give a folder on a Volume"):
        lorry.run()
    lorry.run(tmp_path / "volume").finish()


def test_in_a_resumable_function_there_is_no_folder_to_choose(
    container: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_module, "current", Slice(60, 0, ResumePolicy()))
    with pytest.raises(InvalidError, match="leave the folder out"):
        lorry.run(tmp_path)
    monkeypatch.setattr(slice_module, "current", Slice(60, 0, ResumePolicy(), active=True))
    with pytest.raises(AlreadyExistsError, match="has its run already"):
        lorry.run()
