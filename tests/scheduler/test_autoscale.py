"""One example per rule of the autoscaler."""

from __future__ import annotations

from typing import Any

import pytest

from lorry.lifecycle.container import ContainerState
from lorry.model.function import Scaling
from lorry.scheduler.autoscale import (
    ContainerView,
    Decision,
    FunctionLoad,
    MachineLoad,
    Phase,
    Reason,
    backoff,
    decide,
)
from lorry.scheduler.load import PHASE_OF

NOW = 1_000.0


def a_machine(cores: float = 4, idle: float = 1.0, memory_free: int = 100_000, disk: float = 0.5) -> MachineLoad:
    return MachineLoad(
        cores=cores,
        cpu_idle_fraction=idle,
        memory_free=memory_free,
        memory_total=100_000,
        disk_free_fraction=disk,
    )


def busy(name: str, running: int = 1, age: float = 100.0, **more: Any) -> ContainerView:
    return ContainerView(container_id=name, phase=Phase.READY, running=running, started_at=NOW - age, **more)


def idle(name: str, seconds: float = 0.0, **more: Any) -> ContainerView:
    return ContainerView(container_id=name, phase=Phase.READY, idle_since=NOW - seconds, started_at=NOW - 500.0, **more)


def starting(name: str, age: float = 0.0) -> ContainerView:
    return ContainerView(container_id=name, phase=Phase.STARTING, started_at=NOW - age)


def many_busy(number: int, **more: Any) -> tuple[ContainerView, ...]:
    return tuple(busy(f"ct-{at}", **more) for at in range(number))


def a_load(*containers: ContainerView, waiting: int = 0, **more: Any) -> FunctionLoad:
    names = Scaling.__dataclass_fields__
    scaling = Scaling(**{name: more.pop(name) for name in list(more) if name in names})
    running = sum(view.running for view in containers)
    return FunctionLoad(scaling=scaling, waiting=waiting, running=running, containers=containers, **more)


def ask(load: FunctionLoad, machine: MachineLoad | None = None, now: float = NOW) -> Decision:
    return decide(now, load, machine or a_machine())


# --- a cold queue -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("waiting", "cores", "start"), [(1, 4, 1), (3, 4, 3), (40, 4, 4), (40, 1, 1), (40, 0.5, 1)])
def test_a_cold_queue_starts_one_container_per_input_up_to_the_cores(waiting: int, cores: float, start: int) -> None:
    decision = ask(a_load(waiting=waiting), a_machine(cores=cores))
    assert (decision.start, decision.reason) == (start, Reason.COLD_QUEUE)


def test_the_sentence_of_a_cold_start_has_the_numbers() -> None:
    assert ask(a_load(waiting=40)).sentence == (
        "40 inputs wait and no container is ready (0 starting): start 4, at most one per core (4) at first."
    )


def test_a_cold_queue_counts_what_is_starting_already() -> None:
    assert ask(a_load(starting("ct-1"), waiting=40)).start == 3
    assert ask(a_load(starting("ct-1"), waiting=1)).reason is Reason.ENOUGH


def test_once_every_core_has_a_start_the_queue_waits_for_them() -> None:
    load = a_load(*(starting(f"ct-{at}") for at in range(4)), waiting=40)
    assert ask(load).reason is Reason.STILL_STARTING


def test_a_cold_queue_does_not_ask_for_idle_cpu() -> None:
    assert ask(a_load(waiting=40), a_machine(idle=0.0)).start == 4


def test_the_first_container_starts_even_without_free_memory_the_second_does_not() -> None:
    full = a_machine(memory_free=100)
    assert ask(a_load(waiting=40), full).start == 1
    refused = ask(a_load(starting("ct-1"), waiting=40), full)
    assert (refused.start, refused.reason, refused.wake_at) == (0, Reason.MEMORY_FULL, NOW + 1)


# --- growth -----------------------------------------------------------------------------------------------


def test_no_more_containers_than_the_waiting_inputs_need() -> None:
    assert ask(a_load(*many_busy(10), waiting=2)).start == 2


def test_concurrency_divides_the_need() -> None:
    assert ask(a_load(waiting=30, max_concurrent=10), a_machine(cores=16)).start == 3
    assert ask(a_load(waiting=30, max_concurrent=10, target_concurrent=5), a_machine(cores=16)).start == 6


def test_room_in_busy_containers_is_used_first() -> None:
    assert ask(a_load(busy("ct-1", running=4), waiting=6, max_concurrent=10)).reason is Reason.ENOUGH
    assert ask(a_load(busy("ct-1", running=4), waiting=7, max_concurrent=10)).start == 1


def test_a_container_filled_above_its_target_is_no_debt() -> None:
    load = a_load(busy("ct-1", running=10), waiting=1, max_concurrent=10, target_concurrent=5)
    assert ask(load).start == 1


def test_one_warm_container_does_not_slow_the_start_of_the_others() -> None:
    load = a_load(busy("ct-1", age=0.1), waiting=40)
    decision = ask(load)
    assert (decision.start, decision.reason) == (3, Reason.QUEUE_GROWTH)
    assert ask(load, a_machine(idle=0.1)).reason is Reason.CPU_BUSY


@pytest.mark.parametrize(
    ("containers", "idle_cpu", "start"),
    [(8, 1.0, 8), (8, 0.5, 8), (8, 0.25, 2), (8, 0.2, 2), (5, 0.2, 1), (100, 0.99, 100)],
)
def test_a_step_takes_what_the_idle_cpu_lets_expect(containers: int, idle_cpu: float, start: int) -> None:
    load = a_load(*many_busy(containers), waiting=1000)
    assert ask(load, a_machine(idle=idle_cpu)).start == start


def test_no_growth_below_twenty_percent_idle_cpu() -> None:
    decision = ask(a_load(*many_busy(4), waiting=9), a_machine(idle=0.19))
    assert (decision.start, decision.reason, decision.wake_at) == (0, Reason.CPU_BUSY, NOW + 1)
    assert decision.sentence == ("9 inputs wait; 19% of the CPU is idle, and more containers start only from 20%.")


def test_a_step_waits_until_the_last_one_shows_in_the_cpu() -> None:
    load = a_load(*many_busy(4), busy("ct-new", age=0.3), waiting=9)
    decision = ask(load)
    assert (decision.start, decision.reason, decision.wake_at) == (0, Reason.MEASURING, NOW + 0.7)
    assert decision.wake_at is not None
    assert ask(load, now=decision.wake_at).start > 0


def test_growth_asks_for_the_next_step() -> None:
    assert ask(a_load(*many_busy(4), waiting=9)).wake_at == NOW + 1
    assert ask(a_load(*many_busy(4), waiting=4)).wake_at is None


def test_unproven_containers_never_outnumber_the_proven_ones() -> None:
    young = tuple(starting(f"ct-s{at}", age=5.0) for at in range(6))
    assert ask(a_load(*many_busy(8), *young, waiting=100)).start == 2
    more = tuple(starting(f"ct-t{at}", age=5.0) for at in range(2))
    assert ask(a_load(*many_busy(8), *young, *more, waiting=100)).reason is Reason.STILL_STARTING


def test_sleeping_inputs_get_a_thousand_containers_in_about_ten_steps() -> None:
    containers: tuple[ContainerView, ...] = ()
    steps = 0
    while (waiting := 1000 - len(containers)) > 0:
        machine = a_machine(cores=2, memory_free=1_000_000)
        start = decide(NOW + 2 * steps, a_load(*containers, waiting=waiting), machine).start
        assert start > 0
        new = (busy(f"ct-{steps}-{at}", age=-2.0 * steps) for at in range(start))
        containers += tuple(new)
        steps += 1
    assert 8 <= steps <= 12


# --- memory and disk --------------------------------------------------------------------------------------


def test_growth_needs_memory_for_the_request_until_a_peak_is_measured() -> None:
    machine = a_machine(memory_free=1_000)
    assert ask(a_load(*many_busy(8), waiting=9, memory_request=400), machine).start == 2
    assert ask(a_load(*many_busy(8), waiting=9, memory_request=400, measured_peak_memory=250), machine).start == 4
    decision = ask(a_load(*many_busy(8), waiting=9, measured_peak_memory=1_001), machine)
    assert decision.reason is Reason.MEMORY_FULL
    assert "1000 MiB of 100000 are free" in decision.sentence
    assert "1001 MiB (the peak measured)" in decision.sentence


def test_starting_containers_have_yet_to_take_their_memory() -> None:
    load = a_load(*many_busy(8), starting("ct-s", age=5.0), waiting=9, memory_request=400)
    assert ask(load, a_machine(memory_free=1_000)).start == 1


def test_nothing_starts_below_five_percent_free_disk() -> None:
    decision = ask(a_load(waiting=9, min_containers=1), a_machine(disk=0.049))
    assert (decision.start, decision.reason, decision.wake_at) == (0, Reason.DISK_FULL, NOW + 1)
    assert "Only 4.9% of the disk is free" in decision.sentence
    assert ask(a_load(waiting=9), a_machine(disk=0.05)).start == 4


# --- ceiling, floor, buffer -------------------------------------------------------------------------------


def test_the_ceiling_cuts_a_start_and_says_so() -> None:
    decision = ask(a_load(waiting=9, max_containers=2))
    assert decision.start == 2
    assert decision.sentence.endswith("max_containers=2 leaves room for 2.")


def test_a_draining_container_takes_from_the_room_below_the_ceiling() -> None:
    drains = ContainerView(container_id="ct-1", phase=Phase.DRAINING, running=1, started_at=NOW)
    assert ask(a_load(drains, waiting=9, max_containers=4)).start == 3


@pytest.mark.parametrize("phase", list(Phase))
def test_every_container_that_is_there_counts_under_the_ceiling(phase: Phase) -> None:
    view = ContainerView(container_id="ct-1", phase=phase, running=1, started_at=NOW - 9)
    decision = ask(a_load(view, waiting=9, max_containers=1), a_machine(idle=0.0))
    assert (decision.start, decision.reason, decision.wake_at) == (0, Reason.MAX_CONTAINERS, None)
    assert decision.sentence == "9 inputs wait; max_containers=1 is reached (1 hold a place)."


def test_the_floor_is_kept_without_any_input() -> None:
    decision = ask(a_load(min_containers=2))
    assert (decision.start, decision.reason) == (2, Reason.FLOOR)
    assert ask(a_load(idle("ct-1", 900.0), idle("ct-2", 900.0), min_containers=2)).stop == ()


def test_a_floor_larger_than_the_machine_starts_a_core_full_at_a_time() -> None:
    assert ask(a_load(min_containers=10), a_machine(cores=2)).start == 2
    assert ask(a_load(starting("ct-1"), min_containers=10), a_machine(cores=2)).start == 1
    both = a_load(starting("ct-1"), starting("ct-2"), min_containers=10)
    assert ask(both, a_machine(cores=2)).reason is Reason.STILL_STARTING


def test_the_buffer_is_there_while_the_function_is_active() -> None:
    decision = ask(a_load(busy("ct-1"), buffer_containers=2))
    assert (decision.start, decision.reason) == (2, Reason.BUFFER)
    assert ask(a_load(idle("ct-1"), buffer_containers=2)).start == 0


def test_the_buffer_comes_on_top_of_what_the_queue_takes() -> None:
    decision = ask(a_load(waiting=1, buffer_containers=2))
    assert (decision.start, decision.reason) == (3, Reason.COLD_QUEUE)
    assert "buffer_containers=2" in decision.sentence


def test_a_queue_that_may_not_grow_gets_no_buffer_to_eat() -> None:
    load = a_load(*many_busy(4), waiting=9, buffer_containers=3)
    assert ask(load, a_machine(idle=0.0)).start == 0


def test_the_buffer_needs_free_memory() -> None:
    load = a_load(busy("ct-1"), buffer_containers=2)
    assert ask(load, a_machine(memory_free=0)).reason is Reason.MEMORY_FULL


# --- down -------------------------------------------------------------------------------------------------


def test_idle_containers_go_after_their_window_the_longest_idle_first() -> None:
    decision = ask(a_load(idle("ct-1", 61), idle("ct-2", 10), idle("ct-3", 90), busy("ct-4")))
    assert decision.stop == ("ct-3", "ct-1")
    assert (decision.start, decision.reason, decision.wake_at) == (0, Reason.IDLE, NOW + 50)
    assert decision.sentence == "2 of 3 idle containers have had no input for 60 s: stop."


def test_the_window_is_asked_for_and_exact() -> None:
    load = a_load(idle("ct-1", 10.0), scaledown_window=30.3)
    first = ask(load)
    assert first.stop == ()
    assert first.wake_at is not None
    assert ask(load, now=first.wake_at).stop == ("ct-1",)


def test_floor_and_buffer_stay() -> None:
    views = [idle(f"ct-{seconds}", seconds) for seconds in (100.0, 90.0, 80.0, 70.0)]
    assert ask(a_load(*views, min_containers=3)).stop == ("ct-100.0",)
    assert ask(a_load(*views, busy("ct-b"), buffer_containers=1)).stop == ("ct-100.0", "ct-90.0", "ct-80.0")


def test_idle_containers_that_the_queue_is_about_to_take_stay() -> None:
    assert ask(a_load(idle("ct-1", 100), idle("ct-2", 90), waiting=1)).stop == ("ct-1",)


def test_a_container_that_never_had_an_input_is_idle_since_its_start() -> None:
    view = ContainerView(container_id="ct-1", phase=Phase.READY, started_at=NOW - 61)
    assert ask(a_load(view)).stop == ("ct-1",)


def test_a_starting_container_does_not_replace_a_ready_one_in_the_floor() -> None:
    assert ask(a_load(idle("ct-1", 100), starting("ct-2"), min_containers=1)).stop == ()


def test_everything_stops_with_the_app_once() -> None:
    gone = ContainerView(container_id="ct-4", phase=Phase.STOPPING, started_at=NOW)
    drains = ContainerView(container_id="ct-3", phase=Phase.DRAINING, running=1, started_at=NOW)
    load = a_load(busy("ct-1"), starting("ct-2"), drains, gone, waiting=9, min_containers=2, app_alive=False)
    decision = ask(load)
    assert (decision.start, decision.stop) == (0, ("ct-1", "ct-2", "ct-3"))
    assert decision.reason is Reason.APP_STOPPED


def test_a_container_that_does_not_answer_is_replaced() -> None:
    decision = ask(a_load(idle("ct-1", healthy=False), waiting=1))
    assert (decision.start, decision.stop, decision.reason) == (1, ("ct-1",), Reason.COLD_QUEUE)
    assert "Stop ct-1: no answer" in decision.sentence


def test_a_container_that_does_not_answer_keeps_its_place_while_an_input_depends_on_it() -> None:
    load = a_load(busy("ct-1", healthy=False), waiting=1, max_containers=1)
    decision = ask(load)
    assert (decision.start, decision.stop, decision.reason) == (0, (), Reason.MAX_CONTAINERS)


# --- crash loops ------------------------------------------------------------------------------------------


def test_back_off_doubles_up_to_a_minute_or_five_seconds_with_a_queue() -> None:
    assert [backoff(n, with_queue=False) for n in (1, 2, 3, 8, 100_000)] == [0.5, 1.0, 2.0, 60.0, 60.0]
    assert [backoff(n, with_queue=True) for n in (1, 4, 5, 100_000)] == [0.5, 4.0, 5.0, 5.0]


def test_a_floor_does_not_hot_loop_on_a_failing_import() -> None:
    load = a_load(min_containers=3, failed_starts=4, last_failed_start=NOW - 1.0)
    decision = ask(load)
    assert (decision.start, decision.reason, decision.wake_at) == (0, Reason.BACKING_OFF, NOW + 3)
    assert decision.sentence == "The last 4 starts failed; the next try is 4 s after the last one, in 3 s."
    assert ask(load, now=NOW + 3).start == 1


def test_after_a_failed_start_one_container_is_tried_alone() -> None:
    failed = {"failed_starts": 1, "last_failed_start": NOW - 9.0}
    decision = ask(a_load(waiting=40, **failed))
    assert decision.start == 1
    assert decision.sentence.endswith("The last start failed, so only one for now.")
    waits = ask(a_load(starting("ct-1"), waiting=40, **failed))
    assert (waits.start, waits.reason, waits.wake_at) == (0, Reason.BACKING_OFF, None)


# --- short queues -----------------------------------------------------------------------------------------


def test_a_queue_of_microseconds_keeps_what_there_is() -> None:
    load = a_load(busy("ct-1"), waiting=100, mean_input_seconds=50e-6, backlog_since=NOW - 0.01)
    decision = ask(load)
    assert (decision.start, decision.reason) == (0, Reason.SHORT_QUEUE)
    assert decision.sentence.startswith("100 inputs wait, about 5 ms of work")
    assert decision.wake_at == pytest.approx(NOW + 0.09)


def test_a_cold_queue_of_microseconds_gets_one_container() -> None:
    assert ask(a_load(waiting=100, mean_input_seconds=50e-6, backlog_since=NOW)).start == 1


def test_twenty_milliseconds_of_work_are_worth_a_container() -> None:
    assert ask(a_load(busy("ct-1"), waiting=400, mean_input_seconds=50e-6, backlog_since=NOW)).start == 3


@pytest.mark.parametrize("since", [NOW - 0.1, None])
def test_a_queue_that_should_be_gone_by_now_is_not_short(since: float | None) -> None:
    load = a_load(busy("ct-1"), waiting=100, mean_input_seconds=50e-6, backlog_since=since)
    assert ask(load).start == 3


# --- the rest ---------------------------------------------------------------------------------------------


def test_one_container_on_one_core_is_a_sane_function() -> None:
    one = a_machine(cores=1)
    assert ask(a_load(waiting=5, max_containers=1), one).start == 1
    assert ask(a_load(starting("ct-1"), waiting=5, max_containers=1), one).start == 0
    assert ask(a_load(busy("ct-1"), waiting=5, max_containers=1), one).start == 0
    assert ask(a_load(idle("ct-1", 61), max_containers=1), one).stop == ("ct-1",)


def test_enough_says_what_there_is() -> None:
    decision = ask(a_load(busy("ct-1"), idle("ct-2")))
    assert decision.reason is Reason.ENOUGH
    assert decision.sentence == "Enough: 2 ready (1 idle), 0 starting, 0 inputs waiting, 1 running."


def test_every_state_of_a_container_has_a_phase_or_is_dead() -> None:
    assert set(PHASE_OF) == set(ContainerState)
    assert [state for state, phase in PHASE_OF.items() if phase is None] == [ContainerState.DEAD]
