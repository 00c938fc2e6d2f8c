"""What every store promises when calls are cancelled, when the server restarts, and to who lists calls."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from store_records import call, call_id, chunk, journal, open_chunks, result, spawned, wait

from lorry.errors import NotFoundError
from lorry.model.records import CallState, Status
from lorry.store.interface import Store


def test_cancelling_drops_payloads_and_keeps_results(store: Store) -> None:
    journal(store)
    kept = result(indices=((0, 1),))
    wait(store.record_results, [kept])
    assert wait(store.cancel_call, call_id(1), 250.0)
    assert store.call(call_id(1)) == call(inputs=4, finished=1, state=CallState.CANCELLED, finished_at=250.0)
    with pytest.raises(NotFoundError, match="payload is gone"):
        store.chunk(call_id(1), 0)
    assert store.results(call_id(1)) == [kept]
    assert open_chunks(store) == []


def test_a_cancelled_call_takes_the_results_of_its_cancelled_inputs(store: Store) -> None:
    journal(store)
    wait(store.cancel_call, call_id(1), 250.0)
    assert wait(store.record_results, [result(status=Status.CANCELLED)]) == [True]
    assert store.call(call_id(1)).state == CallState.CANCELLED
    wait(store.close_call, call_id(1), 260.0)
    assert store.call(call_id(1)).state == CallState.CANCELLED


def test_only_what_runs_can_be_cancelled(store: Store) -> None:
    assert not wait(store.cancel_call, call_id(1), 250.0)
    spawned(store)
    wait(store.record_results, [result(indices=((0, 1),))])
    assert not wait(store.cancel_call, call_id(1), 250.0)
    journal(store, number=2)
    assert wait(store.cancel_call, call_id(2), 250.0)
    assert not wait(store.cancel_call, call_id(2), 260.0)


def test_unfinished_tells_recovery_everything_oldest_call_first(store: Store) -> None:
    journal(store, number=2, chunks=2)
    spawned(store, number=1)
    wait(store.record_results, [result(call=2, number=0, indices=((1, 2),)), result(call=2, number=1)])
    wait(store.note_attempts, call_id(2), 0, {3: 1, 0: 2})
    wait(store.note_attempts, call_id(2), 0, {3: 2})
    wait(store.note_attempts, call_id(2), 9, {0: 1})
    first, second = store.call(call_id(1)), store.call(call_id(2))
    assert list(store.unfinished()) == [
        (first, 0, 1, (), {}),
        (second, 0, 4, ((1, 2),), {0: 2, 3: 2}),
    ]


def test_unfinished_walks_many_chunks(store: Store) -> None:
    async def fill() -> None:
        await store.open_call(call())
        await asyncio.gather(*(store.accept_chunk(chunk(number=n)) for n in range(1300)))

    asyncio.run(fill())
    assert open_chunks(store) == [(call_id(1), number) for number in range(1300)]


def test_writes_are_applied_in_the_order_of_their_calls(store: Store) -> None:
    async def together() -> list[object]:
        return await asyncio.gather(
            store.accept_chunk(chunk(call=2)),
            store.open_call(call()),
            store.accept_chunk(chunk()),
            store.record_results([result()]),
            store.acknowledge(call_id(1), 0, ((0, 4),)),
            store.close_call(call_id(1), 300.0),
            return_exceptions=True,
        )

    missing, *others = asyncio.run(together())
    assert isinstance(missing, NotFoundError)
    assert others == [True, True, [True], None, None]
    assert store.call(call_id(1)).state == CallState.DONE


def test_calls_and_children(store: Store) -> None:
    for number, parent in ((1, None), (2, call_id(1)), (3, call_id(1))):
        wait(store.open_call, call(number, parent=parent, created_at=100.0))
    wait(store.open_call, call(4, app_id="ap-2"))
    assert [record.call for record in store.calls("ap-1")] == [call_id(n) for n in (3, 2, 1)]
    assert [record.call for record in store.calls("ap-1", limit=1)] == [call_id(3)]
    assert [record.call for record in store.children(call_id(1))] == [call_id(2), call_id(3)]
    with pytest.raises(NotFoundError):
        store.call(call_id(9))


def test_a_large_payload_comes_back_as_it_went(store: Store) -> None:
    payload = bytes(range(256)) * 256
    wait(store.open_call, call())
    wait(store.accept_chunk, chunk(payload=payload))
    wait(store.record_results, [result(payload=payload)])
    assert store.chunk(call_id(1), 0) == replace(chunk(payload=payload), done=((0, 4),))
    assert store.results(call_id(1)) == [result(payload=payload)]
