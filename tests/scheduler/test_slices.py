"""Runs: which attempts were in vain, when the next one comes, how the last one ends, and who succeeds it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.model.function import ResumePolicy, RetryPolicy, Scaling
from lorry.model.records import Status
from lorry.scheduler import autoscale
from lorry.scheduler.dispatch import KILL_GRACE, Dispatcher, Drained, Finish, Kill, Remember, Send, Stop, Work
from lorry.scheduler.load import ContainerView, FunctionLoad, MachineLoad, Phase, Reason
from lorry.scheduler.slices import MOST_FRUITLESS, Attempt, after, ending_soon
from lorry.testing.simulated_audit import audit, audit_empty

F, OTHER = 1, 2
SLICE, GRACE = 100.0, 30.0
ENDS = st.sampled_from([Status.CONTINUE, Status.ERROR, Status.TIMEOUT, Status.LOST])
ATTEMPTS = st.builds(Attempt, status=ENDS, committed=st.booleans(), excused=st.booleans(), reason=st.just("it died"))


# The rule


@given(st.lists(ATTEMPTS, max_size=30))
def test_a_run_ends_at_the_third_attempt_in_vain_in_a_row_and_never_before(attempts: list[Attempt]) -> None:
    fruitless = in_vain = 0
    for attempt in attempts:
        in_vain = 0 if attempt.committed else in_vain + (not attempt.excused)
        following = after(fruitless, attempt, SLICE)
        fruitless = following.fruitless
        assert fruitless == in_vain
        assert (following.delay is None) == (in_vain == MOST_FRUITLESS) == bool(following.text)
        if following.delay is None:
            assert following.status in (Status.ERROR, Status.TIMEOUT, Status.LOST)
            break


def test_only_an_error_waits_and_longer_the_second_time() -> None:
    error = Attempt(status=Status.ERROR, committed=False)
    assert [after(count, error, SLICE).delay for count in range(3)] == [1.0, 2.0, None]
    assert after(2, Attempt(status=Status.ERROR, committed=True), SLICE).delay == 1.0
    for status in (Status.CONTINUE, Status.TIMEOUT, Status.LOST):
        assert after(1, Attempt(status=status, committed=False), SLICE).delay == 0.0


@pytest.mark.parametrize(
    ("status", "ends", "words"),
    [
        (Status.LOST, Status.LOST, "out of memory. 3 attempts in a row"),
        (Status.TIMEOUT, Status.TIMEOUT, "run.step()"),
        (Status.CONTINUE, Status.TIMEOUT, "Raise timeout="),
        (Status.ERROR, Status.ERROR, ""),
    ],
)
def test_the_end_says_why(status: Status, ends: Status, words: str) -> None:
    attempt = Attempt(status=status, committed=False, reason="out of memory")
    following = after(MOST_FRUITLESS - 1, attempt, SLICE)
    assert following.status is ends
    assert words in following.text


# In the dispatcher


def dispatcher() -> Dispatcher:
    made = Dispatcher(epoch=1)
    made.open(F, RetryPolicy(), SLICE, ResumePolicy(grace=GRACE))
    made.open(OTHER, RetryPolicy(), SLICE)
    return made


def run(number: int = 1, target: int = F) -> Work:
    return Work(call=number.to_bytes(16, "big"), target=target, journaled=True)


def begin(d: Dispatcher, container: str, now: float = 0.0, number: int = 1) -> Send:
    """A container that takes one input, as `Fleet.ready` announces it."""
    (send,) = d.ready(container, F, 1, now, 1)
    assert isinstance(send, Send)
    assert send.work.call == number.to_bytes(16, "big")
    return send


def test_a_run_that_goes_on_waits_behind_those_that_waited() -> None:
    d = dispatcher()
    for number in (1, 2):
        d.submit(run(number), 0.0)
    send = begin(d, "a", number=1)
    assert d.committed("a", run(1).call, 0) == []
    verdict = d.result("a", send.lease, None, Status.CONTINUE, True, 100.0)
    assert verdict.deliver == ()
    assert Drained("a") in verdict.effects
    audit(d)
    begin(d, "b", number=2)
    begin(d, "c", number=1)


def test_a_successor_that_is_ready_takes_over_at_once() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    send = begin(d, "a")
    assert d.ready("spare", F, 1, 50.0, 1) == []
    effects = d.result("a", send.lease, None, Status.CONTINUE, True, 100.0).effects
    assert [effect.container for effect in effects if isinstance(effect, Send)] == ["spare"]


def test_a_checkpoint_resets_the_count_and_the_journal_hears_of_both() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    for number in range(10):
        send = begin(d, f"a{number}")
        if number % 3 == 2:
            assert d.committed(f"a{number}", run().call, 0) == [], "the store has counted it already"
        effects = d.result(f"a{number}", send.lease, None, Status.CONTINUE, True, 0.0).effects
        (remembered,) = [effect.attempts for effect in effects if isinstance(effect, Remember)]
        assert remembered == {0: (number + 1) % 3}
        audit(d)


def test_a_checkpoint_counts_although_its_container_died_while_it_was_written() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    for number in range(10):
        begin(d, f"a{number}")
        assert d.lost(f"a{number}", "it died", 0.0) == [Remember(run().call, 0, {0: 1})]
        assert d.committed(f"a{number}", run().call, 0) == [Remember(run().call, 0, {0: 0})]
    send = begin(d, "b")
    d.committed("a9", run().call, 0)
    assert d.result("b", send.lease, None, Status.CONTINUE, True, 0.0).effects[0] == Remember(run().call, 0, {0: 1})


def test_an_error_is_delivered_as_it_came_at_the_third_time() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    for number, due in enumerate((1.0, 3.0)):
        send = begin(d, f"a{number}", now=due - 1 - number)
        assert d.result(f"a{number}", send.lease, None, Status.ERROR, True, due - 1 - number).deliver == ()
        assert d.next_due() == due
        d.tick(due)
    send = begin(d, "last", now=3.0)
    assert d.result("last", send.lease, None, Status.ERROR, True, 3.0).deliver == ((0, 1),)
    audit_empty(d)


def test_deaths_count_unless_the_platform_killed() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    for number in range(5):
        begin(d, f"spared{number}")
        assert not [e for e in d.lost(f"spared{number}", "moved", 0.0, charge=False) if isinstance(e, Finish)]
    for number in range(3):
        begin(d, f"a{number}")
        effects = d.lost(f"a{number}", "it crashed", 0.0)
        ends = [effect for effect in effects if isinstance(effect, Finish)]
        assert len(ends) == (number == 2)
    assert ends[0].status is Status.LOST
    assert ends[0].text.startswith("it crashed. 3 attempts in a row")
    audit_empty(d)


def test_what_the_platform_interrupts_does_not_count_however_it_ends() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    for number, status in enumerate([Status.CONTINUE, Status.ERROR, Status.TIMEOUT] * 2):
        now = number * 10.0
        d.tick(now)
        send = begin(d, f"a{number}", now)
        d.excuse(f"a{number}")
        assert not d.drain(f"a{number}")
        assert d.result(f"a{number}", send.lease, None, status, True, now).deliver == ()
        audit(d)
    assert d.knows(run().call)


def test_the_grace_is_the_function_s_own() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    send = begin(d, "a")
    assert d.tick(SLICE) == [Stop("a", send.lease, False)]
    assert d.tick(SLICE + KILL_GRACE + 1) == []
    assert d.tick(SLICE + GRACE) == [Kill("a", "an input would not stop")]
    assert not [e for e in d.lost("a", "killed", SLICE + GRACE, charge=False) if isinstance(e, Finish)]
    begin(d, "b")
    d.submit(run(9, OTHER), 0.0)
    (other,) = d.ready("o", OTHER, 1, 0.0)
    assert isinstance(other, Send)
    d.tick(SLICE)
    assert Kill("o", "an input would not stop") in d.tick(SLICE + KILL_GRACE)


def test_three_slices_that_had_to_be_killed_end_as_a_time_out() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    for number in range(3):
        begin(d, f"a{number}")
        d.tick(SLICE)
        ends = [e for e in d.lost(f"a{number}", "killed", SLICE + GRACE, charge=False) if isinstance(e, Finish)]
    assert [end.status for end in ends] == [Status.TIMEOUT]
    audit_empty(d)


def test_a_slice_that_is_too_short_is_not_tried_again() -> None:
    d = dispatcher()
    d.submit(run(), 0.0)
    send = begin(d, "a")
    assert d.result("a", send.lease, None, Status.PLATFORM, True, 1.0).deliver == ((0, 1),)
    audit_empty(d)


def test_a_failed_start_ends_a_new_run_at_once_and_an_old_one_at_the_third_time() -> None:
    d = dispatcher()
    for number in (1, 2):
        d.submit(run(number), 0.0)
    send = begin(d, "a", number=1)
    d.committed("a", run(1).call, 0)
    d.result("a", send.lease, None, Status.CONTINUE, True, 0.0)
    d.lost("a", "it has had its last input", 0.0)
    ended: list[list[bytes]] = []
    for _ in range(3):
        effects = d.fail_waiting(F, Status.ERROR, "its import raised")
        ended.append([effect.work.call for effect in effects if isinstance(effect, Finish)])
        audit(d)
    assert ended == [[run(2).call], [], [run(1).call]]
    audit_empty(d)


def test_a_failed_start_ends_no_run_while_another_one_has_a_container_that_could_start() -> None:
    """One of a hundred that a map sent, on a machine that was busy once."""
    d = dispatcher()
    for number in (1, 2):
        d.submit(run(number), 0.0)
    send = begin(d, "a", number=1)
    assert d.fail_waiting(F, Status.TIMEOUT, "its import took too long") == []
    d.result("a", send.lease, None, Status.OK, True, 0.0)
    (end,) = d.fail_waiting(F, Status.TIMEOUT, "its import took too long")
    assert isinstance(end, Finish)
    assert end.work.call == run(2).call
    d.lost("a", "it has had its last input", 0.0)
    audit_empty(d)


def test_one_chunk_of_a_call_may_end_as_a_time_out_while_the_others_go_on() -> None:
    d = dispatcher()
    for chunk in range(3):
        d.submit(Work(call=bytes(16), chunk=chunk, target=F, journaled=True, batch=True), 0.0)
    (send,) = d.ready("a", F, 1, 0.0, 1)
    assert isinstance(send, Send)
    effects = d.cancel(bytes(16), "its deadline of 8 h is over", 5.0, status=Status.TIMEOUT, chunk=0)
    assert [(e.status, e.work.chunk) for e in effects if isinstance(e, Finish)] == [(Status.TIMEOUT, 0)]
    assert Stop("a", send.lease, True) in effects
    assert d.tick(5.0 + GRACE) == [Kill("a", "an input would not stop")]
    assert [work.chunk for work in d.works_of(bytes(16))] == [1, 2]


# Growth


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 0.19))
def test_a_second_run_waits_for_no_idle_cpu_but_for_a_core(busy: int, waiting: int, idle: float) -> None:
    views = [ContainerView(container_id=f"b{i}", phase=Phase.READY, running=1, started_at=0.0) for i in range(busy)]
    machine = MachineLoad(cores=4, cpu_idle_fraction=idle, memory_free=100_000, memory_total=100_000)

    def started(*, runs: bool) -> int:
        load = FunctionLoad(runs=runs, waiting=waiting, running=busy, containers=tuple(views))
        return autoscale.decide(100.0, load, machine).start

    assert started(runs=True) == max(0, min(waiting, 4 - busy))
    assert started(runs=False) == 0


# Successors


@pytest.mark.parametrize(("timeout", "window"), [(60.0, 10.0), (900.0, 90.0)])
def test_a_slice_wants_a_successor_near_its_end(timeout: float, window: float) -> None:
    d = Dispatcher(epoch=1)
    queue = d.open(F, RetryPolicy(), timeout, ResumePolicy())
    for number in (1, 2):
        d.submit(run(number), 0.0)
        d.ready(f"a{number}", F, 1, 0.0, 1)
    assert ending_soon(queue, timeout - window - 0.1) == 0
    assert ending_soon(queue, timeout - window + 0.1) == 2
    (first, *_) = queue.slots.values()
    d.result(first.container, next(iter(first.leases)), None, Status.OK, True, timeout)
    assert ending_soon(queue, timeout + 5.0) == 1


MACHINE = MachineLoad(cores=4, cpu_idle_fraction=0.0, memory_free=8000, memory_total=16000)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3), st.one_of(st.none(), st.integers(1, 8)))
def test_each_slice_that_ends_has_one_spare_container_and_no_more(
    busy: int, idle: int, starting: int, most: int | None
) -> None:
    views = [ContainerView(container_id=f"b{i}", phase=Phase.READY, running=1, started_at=0.0) for i in range(busy)]
    views += [ContainerView(container_id=f"i{i}", phase=Phase.READY, started_at=0.0) for i in range(idle)]
    views += [ContainerView(container_id=f"s{i}", phase=Phase.STARTING, started_at=0.0) for i in range(starting)]
    scaling = Scaling(max_containers=most, scaledown_window=1.0)
    load = FunctionLoad(scaling=scaling, running=busy, ending=busy, containers=tuple(views))
    decision = autoscale.decide(100.0, load, MACHINE)
    missing = max(0, busy - idle - starting)
    room = missing if most is None else max(0, most - len(views))
    assert decision.start == min(missing, max(0, 4 - starting), room)
    if not missing:
        assert len(decision.stop) == min(idle, idle + starting - busy)
    elif decision.start:
        assert decision.reason is Reason.BUFFER
        assert f"{busy} for slices that end soon" in decision.sentence
