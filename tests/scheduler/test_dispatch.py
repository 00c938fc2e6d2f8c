"""The dispatcher's rules, one test each. What they do together is the simulator's part (test_simulation)."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from lorry.model import selection as sel
from lorry.model.function import RetryPolicy
from lorry.model.records import Selection, Status
from lorry.scheduler.dispatch import (
    KILL_GRACE,
    MAX_DEATHS,
    STALE,
    Dispatcher,
    Drained,
    Effect,
    Finish,
    Kill,
    Remember,
    Send,
    Stop,
    Verdict,
    Work,
)
from lorry.testing.simulated_audit import audit, audit_empty
from lorry.wire.frames import HEADER_SIZE, MAX_FRAME, MAX_INLINE, pack_selection

F = 1
TIMEOUT = 10.0


def dispatcher(retries: int = 0, delay: float = 1.0) -> Dispatcher:
    made = Dispatcher(epoch=1)
    made.open(F, RetryPolicy(max_retries=retries, initial_delay=delay, backoff_coefficient=2.0), TIMEOUT)
    return made


def call(number: int = 1, **fields: object) -> Work:
    return Work(call=number.to_bytes(16, "big"), target=F, **fields)  # type: ignore[arg-type]


def chunk(count: int, number: int = 1, *, chunk: int = 0, again: bool = False) -> Work:
    return call(
        number, chunk=chunk, indices=((0, count),), count=count, total=count, journaled=True, batch=True, again=again
    )


def sends(effects: Iterable[Effect] | None) -> list[Send]:
    return [effect for effect in effects or () if isinstance(effect, Send)]


def only_send(effects: Iterable[Effect] | None) -> Send:
    (send,) = sends(effects)
    return send


def ready(d: Dispatcher, name: str = "a", capacity: int = 1, now: float = 0.0, left: int | None = None) -> list[Effect]:
    return d.ready(name, F, capacity, now, left)


def ends(
    d: Dispatcher,
    send: Send,
    status: Status = Status.OK,
    indices: Selection | None = None,
    now: float = 0.0,
    last: bool = True,
) -> Verdict:
    return d.result(send.container, send.lease, indices, status, last, now)


def claim(number: int = 1, indices: Selection = ((0, 1),), *, journaled: bool = False, stream: bool = False) -> Work:
    return call(number, indices=indices, count=sel.count(indices), journaled=journaled, stream=stream)


# From a call to its result


def test_a_call_goes_to_a_free_container_at_once_and_its_result_is_delivered() -> None:
    d = dispatcher()
    ready(d)
    work = call()
    send = only_send(d.submit(work, 1.0))
    assert (send.container, send.work) == ("a", work)
    verdict = ends(d, send)
    assert (verdict.deliver, verdict.work, verdict.effects) == (((0, 1),), work, [])
    audit_empty(d)


def test_calls_wait_in_order_for_a_container() -> None:
    d = dispatcher()
    assert d.submit(call(1), 0.0) == d.submit(call(2), 0.0) == []
    assert d.queues[F].waiting == 2
    first = only_send(ready(d))
    assert first.work.call == call(1).call
    assert only_send(ends(d, first).effects).work.call == call(2).call


def test_a_call_that_is_asked_twice_runs_once() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    assert d.submit(call(again=True), 0.0) is None
    assert ends(d, send).deliver == ((0, 1),)
    audit_empty(d)


def test_the_container_that_worked_last_gets_the_next_call() -> None:
    d = dispatcher()
    for name in "abc":
        ready(d, name)
    one, two = only_send(d.submit(call(1), 0.0)), only_send(d.submit(call(2), 0.0))
    assert [one.container, two.container] == ["c", "b"]
    ends(d, one)
    assert only_send(d.submit(call(3), 0.0)).container == "c"


def test_a_container_never_has_more_leases_than_its_capacity() -> None:
    d = dispatcher()
    ready(d, capacity=2)
    assert [len(sends(d.submit(call(n), 0.0))) for n in range(3)] == [1, 1, 0]


def test_a_second_ready_changes_nothing() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    assert ready(d) == []
    assert ends(d, send).deliver == ((0, 1),)


# Stale and wrong results


def test_a_second_result_of_a_lease_is_stale() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    ends(d, send)
    assert ends(d, send) is STALE


def test_a_result_of_a_container_that_is_presumed_dead_is_stale() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    d.lost("a", "gone", 0.0)
    assert ends(d, send) is STALE
    assert d.queues[F].waiting == 1


def test_a_result_from_another_container_than_the_lease_holder_is_dropped() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    assert d.result("thief", send.lease, None, Status.OK, True, 0.0) is STALE
    d.progress("thief", send.lease, 0.0, 100.0)
    assert d.leases[send.lease].started == 0.0


def test_a_result_for_inputs_that_were_not_given_kills_the_container() -> None:
    d = dispatcher()
    d.queues[F].share = 2
    d.submit(chunk(4), 0.0)
    send = only_send(ready(d))
    verdict = ends(d, send, indices=((0, 3),), last=False)
    assert verdict.deliver == ()
    assert isinstance(verdict.effects[0], Kill)
    d.lost("a", "killed", 0.0, charge=False)
    assert d.queues[F].waiting == 4
    audit(d)


def test_the_same_part_reported_twice_is_delivered_once() -> None:
    d = dispatcher()
    d.queues[F].share = 4
    d.submit(chunk(4), 0.0)
    send = only_send(ready(d))
    assert ends(d, send, indices=((0, 2),), last=False).deliver == ((0, 2),)
    assert ends(d, send, indices=((0, 2),), last=False).deliver == ()
    assert ends(d, send, indices=((2, 4),)).deliver == ((2, 4),)
    audit_empty(d)


def test_a_whole_result_is_dropped_when_a_part_of_it_has_an_outcome() -> None:
    d = dispatcher()
    d.queues[F].share = 4
    d.submit(chunk(4), 0.0)
    send = only_send(ready(d))
    ends(d, send, indices=((0, 1),), last=False)
    verdict = ends(d, send)  # "all that I was given": its payload cannot be taken apart
    assert verdict.deliver == ()
    assert only_send(verdict.effects).work.indices == ((1, 4),)


@pytest.mark.parametrize("status", [Status.OK, Status.ERROR])
def test_a_lease_that_is_given_back_unrun_goes_to_the_front_whole(status: Status) -> None:
    d = dispatcher(retries=1)
    d.queues[F].share = 4
    d.submit(chunk(4), 0.0)
    send = only_send(ready(d))
    d.submit(call(9), 0.0)
    d.drain("a")
    verdict = ends(d, send, status, indices=())
    assert verdict.deliver == ()
    assert verdict.effects == [Drained("a")]
    assert only_send(ready(d, "b")).work.indices == ((0, 4),)


# Chunks


def test_a_container_gets_no_more_of_a_chunk_than_its_share() -> None:
    d = dispatcher()
    d.queues[F].share = 3
    ready(d, "a")
    ready(d, "b")
    parts = sends(d.submit(chunk(7), 0.0))
    assert [send.work.indices for send in parts] == [((0, 3),), ((3, 6),)]
    assert d.queues[F].waiting == 1
    assert only_send(ends(d, parts[0]).effects).work.indices == ((6, 7),)


def test_a_limited_container_gets_no_more_inputs_than_it_has_left() -> None:
    d = dispatcher()
    d.queues[F].share = 10
    d.submit(chunk(5), 0.0)
    send = only_send(ready(d, left=2))
    assert send.work.count == 2
    assert ends(d, send).effects == [Drained("a")]
    assert d.queues[F].waiting == 3


# Retries


def test_a_failure_is_retried_after_the_policys_delay_and_remembered() -> None:
    d = dispatcher(retries=2)
    d.submit(chunk(1), 0.0)
    send = only_send(ready(d))
    verdict = ends(d, send, Status.ERROR, now=5.0)
    assert verdict.deliver == ()
    assert verdict.effects == [Remember(send.work.call, 0, {0: 1})]
    assert d.next_due() == 6.0
    assert d.tick(5.9) == []
    again = only_send(d.tick(6.0))
    assert ends(d, again, Status.ERROR, now=6.0).deliver == ()
    last = only_send(d.tick(8.0))
    assert ends(d, last, Status.ERROR, now=8.0).deliver == ((0, 1),)
    audit_empty(d)


def test_attempts_of_synchronous_calls_are_not_journaled() -> None:
    d = dispatcher(retries=1)
    ready(d)
    assert ends(d, only_send(d.submit(call(), 0.0)), Status.ERROR).effects == []


def test_inputs_that_failed_together_are_retried_by_their_own_counts() -> None:
    d = dispatcher(retries=1)
    d.queues[F].share = 2
    work = chunk(2)
    work.attempts = {1: 1}
    d.submit(work, 0.0)
    verdict = ends(d, only_send(ready(d)), Status.ERROR)
    assert verdict.deliver == ((1, 2),)
    assert only_send(d.tick(1.0)).work.indices == ((0, 1),)


def test_a_retry_without_delay_starts_at_once() -> None:
    d = dispatcher(retries=1, delay=0.0)
    ready(d)
    verdict = ends(d, only_send(d.submit(call(), 0.0)), Status.ERROR)
    assert len(sends(verdict.effects)) == 1


# Deaths


def test_a_lost_input_runs_again_at_once_before_the_others_and_off_the_budget() -> None:
    d = dispatcher()
    ready(d)
    work = call(1)
    d.submit(work, 0.0)
    d.submit(call(2), 0.0)
    assert d.lost("a", "gone", 0.0) == []
    assert only_send(ready(d, "b")).work is work
    assert work.attempts == {}


def test_a_lost_chunk_comes_back_in_halves_until_the_killer_is_alone() -> None:
    d = dispatcher()
    d.queues[F].share = 4
    d.submit(chunk(4), 0.0)
    assert only_send(ready(d, "a")).work.count == 4
    d.lost("a", "gone", 0.0)
    assert only_send(ready(d, "b")).work.indices == ((0, 2),)
    d.lost("b", "gone", 0.0)
    assert only_send(ready(d, "c")).work.indices == ((0, 1),)
    audit(d)


def test_the_eighth_death_of_an_input_alone_is_its_end() -> None:
    d = dispatcher()
    d.submit(call(), 0.0)
    for number in range(MAX_DEATHS):
        only_send(ready(d, f"c{number}"))
        effects = d.lost(f"c{number}", "the container died", 0.0)
    (end,) = effects
    assert isinstance(end, Finish)
    assert end.status is Status.LOST
    assert "8 times" in end.text
    audit_empty(d)


def test_deaths_that_the_platform_caused_are_not_counted() -> None:
    d = dispatcher()
    d.submit(call(), 0.0)
    for number in range(MAX_DEATHS + 2):
        only_send(ready(d, f"c{number}"))
        assert d.lost(f"c{number}", "stopped", 0.0, charge=False) == []


def test_inputs_that_died_together_run_alone_from_then_on() -> None:
    d = dispatcher()
    ready(d, "a", capacity=2)
    d.submit(call(1), 0.0)
    d.submit(call(2), 0.0)
    d.lost("a", "gone", 0.0)
    first = only_send(ready(d, "b", capacity=2))
    assert first.work.deaths == 0
    assert sends(d.submit(call(3), 0.0)) == []
    second = only_send(ends(d, first).effects)
    assert second.work.suspect
    third = only_send(ends(d, second).effects)
    assert third.work.call == call(3).call


def test_a_suspect_gets_a_container_that_is_never_idle_by_itself() -> None:
    d = dispatcher()
    ready(d, "dies", capacity=2)
    d.submit(call(1), 0.0)
    d.submit(call(2), 0.0)
    ready(d, "busy", capacity=2)
    running = [only_send(d.submit(call(n), 0.0)) for n in (3, 4)]
    d.lost("dies", "gone", 0.0)
    d.submit(call(5), 0.0)
    assert sends(ends(d, running[0]).effects) == []  # it empties itself
    suspect = only_send(ends(d, running[1]).effects)
    assert suspect.work.suspect
    audit(d)


def test_a_generator_that_delivered_is_not_started_again() -> None:
    d = dispatcher(retries=5)
    ready(d)
    send = only_send(d.submit(call(stream=True), 0.0))
    assert ends(d, send, Status.YIELD, last=False).deliver == ((0, 1),)
    (end,) = d.lost("a", "the container died", 0.0)
    assert isinstance(end, Finish)
    assert end.status is Status.LOST
    audit_empty(d)


def test_a_generator_that_raises_after_a_value_is_not_retried() -> None:
    d = dispatcher(retries=5)
    ready(d)
    send = only_send(d.submit(call(stream=True), 0.0))
    ends(d, send, Status.YIELD, last=False)
    assert ends(d, send, Status.ERROR).deliver == ((0, 1),)


def test_a_generator_that_is_given_up_after_a_value_ends() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(stream=True), 0.0))
    ends(d, send, Status.YIELD, last=False)
    verdict = ends(d, send, Status.OK, indices=())
    assert [type(effect) for effect in verdict.effects] == [Finish]


# Time


def test_an_input_over_its_time_is_asked_to_stop_and_killed_after_the_grace() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 1.0))
    assert d.tick(10.9) == []
    assert d.tick(11.0) == [Stop("a", send.lease, cancel=False)]
    assert d.tick(11.0 + KILL_GRACE - 0.1) == []
    assert d.tick(11.0 + KILL_GRACE) == [Kill("a", "an input would not stop")]
    assert d.tick(11.1 + KILL_GRACE) == []
    (end,) = d.lost("a", "killed", 17.0, charge=False)
    assert isinstance(end, Finish)
    assert end.status is Status.TIMEOUT
    audit_empty(d)


def test_an_input_that_was_killed_for_its_time_is_retried_by_policy() -> None:
    d = dispatcher(retries=1)
    ready(d)
    d.submit(call(), 0.0)
    d.tick(10.0)
    d.tick(15.0)
    assert d.lost("a", "killed", 15.0, charge=False) == []
    assert d.next_due() == 16.0


def test_neighbours_of_a_killed_input_run_again_without_suspicion() -> None:
    d = dispatcher()
    ready(d, capacity=2)
    d.submit(call(1), 0.0)
    d.submit(call(2), 9.0)
    d.tick(10.0)
    d.tick(15.0)
    (end,) = d.lost("a", "killed", 15.0, charge=False)
    assert isinstance(end, Finish)
    assert end.work.call == call(1).call
    neighbour = only_send(ready(d, "b", capacity=2)).work
    assert (neighbour.suspect, neighbour.deaths, neighbour.attempts) == (False, 0, {})


def test_a_container_that_is_being_killed_gets_nothing_more() -> None:
    d = dispatcher()
    ready(d, capacity=2)
    d.submit(call(1), 0.0)
    d.tick(10.0)
    d.tick(15.0)
    assert d.submit(call(2), 15.0) == []


def test_progress_takes_the_request_to_stop_back() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    d.tick(10.0)
    d.progress("a", send.lease, 2.0, 10.1)
    assert d.tick(15.5) == []
    assert d.tick(18.2) == [Stop("a", send.lease, cancel=False)]


def test_a_partial_result_starts_the_time_of_the_next_input() -> None:
    d = dispatcher()
    d.queues[F].share = 2
    d.submit(chunk(2), 0.0)
    send = only_send(ready(d))
    d.tick(10.0)
    ends(d, send, Status.TIMEOUT, indices=((0, 1),), last=False, now=10.1)
    assert d.tick(16.0) == []
    assert d.tick(20.2) == [Stop("a", send.lease, cancel=False)]


def test_the_time_of_one_lease_does_not_hide_that_of_a_later_one() -> None:
    d = dispatcher()
    ready(d, capacity=2)
    one = only_send(d.submit(call(1), 0.0))
    two = only_send(d.submit(call(2), 3.0))
    ends(d, one, now=4.0)
    assert d.tick(10.0) == []
    assert d.tick(13.0) == [Stop("a", two.lease, cancel=False)]


# Cancellation


def test_cancel_ends_what_waits_and_stops_what_runs() -> None:
    d = dispatcher()
    d.queues[F].share = 2
    d.submit(chunk(4), 0.0)
    send = only_send(ready(d))
    effects = d.cancel(send.work.call, "cancelled", 0.0)
    ended = [effect for effect in effects if isinstance(effect, Finish)]
    assert sorted(effect.indices for effect in ended) == [((0, 2),), ((2, 4),)]
    assert Stop("a", send.lease, cancel=True) in effects
    assert d.queues[F].waiting == 0
    assert not d.knows(send.work.call)
    assert ends(d, send).deliver == ()
    audit_empty(d)


def test_a_cancelled_input_whose_container_dies_is_not_queued_again() -> None:
    d = dispatcher(retries=3)
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    d.cancel(send.work.call, "cancelled", 0.0)
    assert d.lost("a", "gone", 0.0) == []
    audit_empty(d)


def test_a_cancelled_input_that_does_not_stop_is_killed() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    d.cancel(send.work.call, "cancelled", 1.0)
    d.progress("a", send.lease, 0.0, 2.0)
    assert d.tick(1.0 + KILL_GRACE) == [Kill("a", "an input would not stop")]


def test_a_cancelled_retry_does_not_come_back() -> None:
    d = dispatcher(retries=1)
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    ends(d, send, Status.ERROR)
    assert [type(effect) for effect in d.cancel(send.work.call, "cancelled", 0.0)] == [Finish]
    assert d.tick(100.0) == []
    assert d.queues[F].delayed == []
    audit_empty(d)


def test_a_call_can_be_asked_again_while_its_cancelled_run_ends() -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(), 0.0))
    d.cancel(send.work.call, "cancelled", 0.0)
    assert d.submit(call(again=True), 0.0) == []
    assert len(sends(ends(d, send, Status.CANCELLED).effects)) == 1


def test_cancelling_an_unknown_call_is_nothing() -> None:
    assert dispatcher().cancel(b"?" * 16, "cancelled", 0.0) == []


# Draining


def test_a_draining_container_says_once_that_it_is_done() -> None:
    d = dispatcher()
    ready(d, capacity=2)
    one, two = (only_send(d.submit(call(n), 0.0)) for n in (1, 2))
    assert d.drain("a") is False
    assert ends(d, one).effects == []
    assert ends(d, two).effects == [Drained("a")]
    assert d.drain("a") is True
    assert d.submit(call(3), 0.0) == []


# Containers that cannot start


def test_what_waits_fails_when_no_container_can_start() -> None:
    d = dispatcher()
    d.submit(call(1), 0.0)
    (end,) = d.fail_waiting(F, Status.PLATFORM, "the import raised")
    assert isinstance(end, Finish)
    assert end.status is Status.PLATFORM
    audit_empty(d)


def test_what_waits_goes_on_waiting_while_other_containers_serve() -> None:
    d = dispatcher()
    ready(d)
    d.submit(call(1), 0.0)
    d.submit(call(2), 0.0)
    assert d.fail_waiting(F, Status.PLATFORM, "one start failed") == []
    assert d.queues[F].waiting == 1


# After a restart of the server


def test_recovered_inputs_wait_for_the_containers_that_may_have_them() -> None:
    d = dispatcher()
    d.expect(F, "old")
    d.submit(chunk(2, again=True), 0.0)
    assert ready(d, "new") == []
    assert len(sends(d.lost("old", "it was gone", 1.0))) == 1
    audit(d)


def test_a_container_that_comes_back_goes_on_with_its_inputs() -> None:
    d = dispatcher()
    d.expect(F, "old")
    d.submit(chunk(4, again=True), 0.0)
    effects = d.adopt("old", F, 1, [(77, claim(indices=((0, 2),), journaled=True))], 1.0)
    assert effects == []
    assert d.queues[F].waiting == 2
    verdict = d.result("old", 77, None, Status.OK, True, 2.0)
    assert verdict.deliver == ((0, 2),)
    assert verdict.work is not None
    assert (verdict.work.journaled, verdict.work.total) == (True, 4)
    assert only_send(verdict.effects).work.indices == ((2, 3),)


def test_an_adopted_container_loses_inputs_that_have_results_already() -> None:
    d = dispatcher()
    d.expect(F, "old")
    left = chunk(4, again=True)
    left.indices, left.count = ((2, 4),), 2
    d.submit(left, 0.0)
    d.adopt("old", F, 2, [(77, claim(indices=((0, 4),), journaled=True))], 1.0)
    assert d.result("old", 77, ((0, 1),), Status.OK, False, 1.0).deliver == ()
    assert d.result("old", 77, ((2, 3),), Status.OK, False, 1.0).deliver == ((2, 3),)
    d.lost("old", "gone", 2.0)
    assert only_send(ready(d, "new")).work.indices == ((3, 4),)


@pytest.mark.parametrize("journaled", [True, False])
def test_a_claim_that_runs_elsewhere_by_now_is_told_to_stop(journaled: bool) -> None:
    d = dispatcher()
    ready(d)
    send = only_send(d.submit(call(journaled=journaled), 0.0))
    assert d.adopt("old", F, 1, [(77, claim(journaled=journaled))], 0.0) == [Stop("old", 77, cancel=True)]
    assert d.result("old", 77, None, Status.OK, True, 0.0).deliver == ()
    assert ends(d, send).deliver == ((0, 1),)
    audit_empty(d)


def test_a_claim_on_a_journaled_input_that_is_over_is_told_to_stop() -> None:
    d = dispatcher()
    assert d.adopt("old", F, 1, [(77, claim(journaled=True))], 0.0) == [Stop("old", 77, cancel=True)]


def test_a_generator_of_an_earlier_life_is_told_to_stop() -> None:
    d = dispatcher()
    assert d.adopt("old", F, 1, [(77, claim(stream=True))], 0.0) == [Stop("old", 77, cancel=True)]


def test_a_container_cannot_claim_another_functions_inputs_or_anothers_lease() -> None:
    d = dispatcher()
    d.open(2, RetryPolicy(), TIMEOUT)
    d.submit(call(), 0.0)
    d.adopt("thief", 2, 1, [(77, claim())], 0.0)
    send = only_send(ready(d))
    assert d.adopt("other", 2, 1, [(send.lease, claim(5))], 0.0) == []
    assert d.leases[send.lease].container == "a"


def test_a_synchronous_call_that_is_adopted_before_its_client_asks_again() -> None:
    d = dispatcher()
    d.adopt("old", F, 1, [(77, claim())], 0.0)
    assert d.submit(call(again=True), 0.0) is None
    d.lost("old", "gone", 1.0)
    assert len(sends(ready(d, "new"))) == 1


def test_a_synchronous_call_whose_arguments_died_with_its_container_waits_for_its_client() -> None:
    d = dispatcher()
    d.adopt("old", F, 1, [(77, claim())], 0.0)
    assert d.lost("old", "gone", 1.0) == []
    audit_empty(d)
    assert d.submit(call(again=True), 2.0) == []


def test_a_synchronous_call_that_asks_before_its_container_is_back() -> None:
    d = dispatcher()
    d.expect(F, "old")
    assert d.submit(call(again=True), 0.0) == []
    assert d.adopt("old", F, 1, [(77, claim())], 0.0) == []
    assert d.result("old", 77, None, Status.OK, True, 0.0).deliver == ((0, 1),)
    audit_empty(d)


def test_an_adopted_container_without_inputs_left_drains() -> None:
    d = dispatcher()
    assert d.adopt("idle", F, 1, [], 0.0, 0) == [Drained("idle")]
    assert d.adopt("busy", F, 1, [(77, claim())], 0.0, 0) == []
    assert d.result("busy", 77, None, Status.OK, True, 0.0).effects == [Drained("busy")]


def test_a_container_that_was_still_booting_lets_the_held_inputs_go() -> None:
    d = dispatcher()
    d.expect(F, "old")
    d.submit(call(again=True), 0.0)
    assert len(sends(ready(d, "old"))) == 1


def test_held_inputs_are_not_failed_by_a_start_that_failed() -> None:
    d = dispatcher()
    d.expect(F, "old")
    d.submit(chunk(1, again=True), 0.0)
    d.submit(call(2), 0.0)
    assert d.fail_waiting(F, Status.PLATFORM, "the import raised") == []


def test_scattered_inputs_are_handed_out_in_parts_whose_selection_fits_into_a_frame() -> None:
    """As a restart finds them: every other input of a large chunk has its result, and the rest runs again."""
    d = dispatcher()
    d.queues[F].share = 100_000
    scattered = sel.from_indices(range(0, 5000, 2))
    work = call(indices=scattered, count=2500, total=5000, journaled=True, batch=True, again=True)
    assert d.submit(work, 0.0) == []
    sent: Selection = ()
    effects = ready(d)
    while effects:
        send = only_send(effects)
        payload = b"x" * MAX_INLINE
        assert HEADER_SIZE + len(pack_selection(send.work.indices)) + len(payload) <= MAX_FRAME
        sent = sel.union(sent, send.work.indices)
        effects = ends(d, send).effects
    assert sent == scattered
    audit_empty(d)


def test_an_input_that_passes_the_memory_limit_alone_is_tried_twice() -> None:
    d = dispatcher()
    d.submit(call(), 0.0)
    (send,) = sends(ready(d, "a"))
    assert d.lost(send.container, "OutOfMemoryError: too much", 1.0, own_limit=True) == []
    (send,) = sends(ready(d, "b"))
    (end,) = d.lost(send.container, "OutOfMemoryError: too much", 2.0, own_limit=True)
    assert isinstance(end, Finish)
    assert end.status is Status.LOST
    assert end.text.startswith("OutOfMemoryError: too much. The input was alone in the container, 2 times")
    audit_empty(d)


def test_many_inputs_that_pass_the_memory_limit_together_are_halved_until_one_is_alone() -> None:
    d = dispatcher()
    d.queues[F].share = 8
    d.submit(chunk(8), 0.0)
    deaths, ended = 0, []
    effects = ready(d, "ct-0")
    while effects:
        for send in sends(effects):
            if sel.covers(send.work.indices, ((5, 6),)):  # input 5 takes too much
                deaths += 1
                ended += [e for e in d.lost(send.container, "memory", 1.0, own_limit=True) if isinstance(e, Finish)]
                effects = ready(d, f"ct-{deaths}")
            else:
                effects = ends(d, send).effects
            break
        else:
            break
    assert [end.indices for end in ended] == [((5, 6),)]
    assert deaths == 3 + 2  # 8, 4, 2, and twice alone
    audit_empty(d)
