"""What every store promises of inputs and their results; `…_recovery` and `…_rows` have the other verbs."""

from __future__ import annotations

import pytest
from store_records import call, call_id, chunk, journal, open_chunks, result, spawned, wait

from lorry.errors import InternalError, InvalidError, NotFoundError
from lorry.model.records import CallKind, CallState, Status
from lorry.store.interface import Store

# Journaling


def test_a_spawn_is_a_closed_call_with_its_inputs(store: Store) -> None:
    spawned(store, inputs=3)
    record = call(kind=CallKind.SPAWN, keep_results=True, state=CallState.CLOSED, inputs=3)
    assert store.call(call_id(1)) == record
    assert store.chunk(call_id(1), 0) == chunk(inputs=3)


def test_a_spawn_that_is_sent_twice_is_one_call(store: Store) -> None:
    spawned(store)
    assert not wait(store.accept_spawn, call(), chunk(inputs=9, payload=b"other"))
    assert store.chunk(call_id(1), 0).payload == b"in"


def test_what_the_client_claims_of_progress_is_not_believed(store: Store) -> None:
    claimed = call(inputs=7, finished=7, state=CallState.DONE, finished_at=1.0)
    assert wait(store.open_call, claimed)
    assert store.call(call_id(1)) == call()


def test_open_call_is_idempotent(store: Store) -> None:
    journal(store)
    assert not wait(store.open_call, call(app_id="ap-2"))
    assert store.call(call_id(1)).app_id == "ap-1"


def test_a_chunk_that_is_sent_twice_counts_once(store: Store) -> None:
    journal(store)
    assert not wait(store.accept_chunk, chunk())
    assert store.call(call_id(1)).inputs == 4
    wait(store.close_call, call_id(1), 150.0)
    assert not wait(store.accept_chunk, chunk())


def test_a_chunk_number_keeps_its_size(store: Store) -> None:
    journal(store)
    with pytest.raises(InvalidError, match="4 inputs before and with 5 now"):
        wait(store.accept_chunk, chunk(inputs=5))


def test_chunks_need_an_open_call(store: Store) -> None:
    with pytest.raises(NotFoundError):
        wait(store.accept_chunk, chunk())
    journal(store)
    wait(store.close_call, call_id(1), 150.0)
    with pytest.raises(InvalidError, match="is closed"):
        wait(store.accept_chunk, chunk(number=1))
    assert store.call(call_id(1)).inputs == 4


def test_a_call_without_inputs_is_done_when_it_is_closed(store: Store) -> None:
    assert wait(store.open_call, call())
    wait(store.close_call, call_id(1), 150.0)
    assert store.call(call_id(1)) == call(state=CallState.DONE, finished_at=150.0)


def test_closing_twice_or_an_unknown_call_changes_nothing(store: Store) -> None:
    wait(store.open_call, call())
    for now in (150.0, 160.0):
        wait(store.close_call, call_id(1), now)
    wait(store.close_call, call_id(2), 150.0)
    assert store.call(call_id(1)).finished_at == 150.0


# Results


def test_a_call_is_done_when_it_is_closed_and_all_inputs_are_finished(store: Store) -> None:
    journal(store, chunks=2)
    assert wait(store.record_results, [result(), result(number=1, at=201.0)]) == [True, True]
    assert store.call(call_id(1)) == call(inputs=8, finished=8)
    wait(store.close_call, call_id(1), 300.0)
    assert store.call(call_id(1)) == call(inputs=8, finished=8, state=CallState.DONE, finished_at=300.0)


def test_the_last_result_ends_a_closed_call(store: Store) -> None:
    journal(store)
    wait(store.close_call, call_id(1), 150.0)
    kept = wait(store.record_results, [result(indices=((0, 3),)), result(indices=((3, 4),), at=210.0)])
    assert kept == [True, True]
    assert store.call(call_id(1)) == call(inputs=4, finished=4, state=CallState.DONE, finished_at=210.0)


@pytest.mark.parametrize(
    "again",
    [((0, 1),), ((1, 3),), ((0, 4),), ((0, 1), (3, 4))],
    ids=["same", "partly", "superset", "scattered"],
)
def test_an_input_has_one_result_and_the_second_is_dropped_whole(store: Store, again: object) -> None:
    journal(store)
    first = result(indices=((0, 2),))
    assert wait(store.record_results, [first]) == [True]
    assert wait(store.record_results, [result(indices=again, payload=b"second")]) == [False]
    assert store.results(call_id(1)) == [first]
    assert store.call(call_id(1)).finished == 2
    assert store.chunk(call_id(1), 0).done == ((0, 2),)


def test_results_of_one_verb_compete_with_each_other(store: Store) -> None:
    journal(store)
    twins = [result(indices=((1, 2),)), result(indices=((0, 2),)), result(indices=((2, 4),))]
    assert wait(store.record_results, twins) == [True, False, True]
    assert [found.indices for found in store.results(call_id(1))] == [((1, 2),), ((2, 4),)]


def test_results_without_their_chunk_or_input_are_dropped(store: Store) -> None:
    journal(store)
    strays = [result(call=2), result(number=5), result(indices=((3, 5),)), result(indices=())]
    assert wait(store.record_results, strays) == [False] * 4
    assert store.results(call_id(1)) == []


def test_a_yielded_value_is_no_result(store: Store) -> None:
    journal(store)
    with pytest.raises(InternalError, match="refused"):
        wait(store.record_results, [result(indices=((0, 1),)), result(indices=((1, 2),), status=Status.YIELD)])
    assert store.results(call_id(1)) == []


def test_a_chunk_has_inputs(store: Store) -> None:
    journal(store)
    for verb, records in (
        (store.accept_chunk, [chunk(1, 1, 0)]),
        (store.accept_spawn, [call(2), chunk(2, 0, 0)]),
    ):
        with pytest.raises(InternalError, match="refused"):
            wait(verb, *records)
    with pytest.raises(NotFoundError):
        store.call(call_id(2))


def test_result_finds_the_row_that_covers_an_input(store: Store) -> None:
    journal(store, inputs=6)
    odd, even = result(indices=((0, 1), (4, 5)), status=Status.ERROR), result(indices=((1, 3),))
    wait(store.record_results, [odd, even])
    assert [store.result(call_id(1), 0, index) for index in range(6)] == [odd, even, even, None, odd, None]
    assert store.result(call_id(1), 9, 0) is None


def test_results_come_by_chunk_and_first_index_in_pages(store: Store) -> None:
    journal(store, chunks=2)
    rows = [result(number=n, indices=((i, i + 1),)) for n in (1, 0) for i in (2, 0, 1)]
    wait(store.record_results, rows)
    in_order = sorted(rows, key=lambda row: (row.chunk, row.indices))
    assert store.results(call_id(1)) == in_order
    assert store.results(call_id(1), limit=2) == in_order[:2]
    assert store.results(call_id(1), after=(0, 1), limit=3) == in_order[2:5]
    assert store.results(call_id(2)) == []


# Acknowledging


def test_acknowledged_results_go_and_their_inputs_stay_finished(store: Store) -> None:
    journal(store)
    left, right = result(indices=((0, 2),)), result(indices=((2, 4),))
    wait(store.record_results, [left, right])
    wait(store.acknowledge, call_id(1), 0, left.indices)
    assert store.results(call_id(1)) == [right]
    assert wait(store.record_results, [left]) == [False]
    assert store.chunk(call_id(1), 0).done == ((0, 4),)


def test_a_row_goes_when_all_of_it_is_acknowledged(store: Store) -> None:
    journal(store)
    row = result(indices=((0, 3),))
    wait(store.record_results, [row])
    for part in ((1, 2), (0, 1)):
        wait(store.acknowledge, call_id(1), 0, (part,))
        assert store.results(call_id(1)) == [row]
    wait(store.acknowledge, call_id(1), 0, ((2, 3),))
    assert store.results(call_id(1)) == []


def test_inputs_that_are_not_finished_cannot_be_acknowledged(store: Store) -> None:
    journal(store)
    wait(store.acknowledge, call_id(1), 0, ((0, 4),))
    wait(store.acknowledge, call_id(1), 7, ((0, 4),))
    wait(store.acknowledge, call_id(3), 0, ((0, 4),))
    wait(store.record_results, [result()])
    assert store.results(call_id(1)) == [result()]


def test_an_acknowledged_chunk_is_gone_and_cannot_run_again(store: Store) -> None:
    journal(store, chunks=2)
    wait(store.record_results, [result()])
    wait(store.acknowledge, call_id(1), 0, ((0, 4),))
    with pytest.raises(NotFoundError):
        store.chunk(call_id(1), 0)
    assert not wait(store.accept_chunk, chunk())
    assert wait(store.record_results, [result()]) == [False]
    assert open_chunks(store) == [(call_id(1), 1)]
    assert store.call(call_id(1)) == call(inputs=8, finished=4)


def test_a_call_that_keeps_its_results_keeps_them_when_acknowledged(store: Store) -> None:
    spawned(store)
    wait(store.record_results, [result(indices=((0, 1),))])
    wait(store.acknowledge, call_id(1), 0, ((0, 1),))
    assert store.results(call_id(1)) == [result(indices=((0, 1),))]
