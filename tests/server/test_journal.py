"""Durable calls over the memory store: on disk, then acknowledged; recorded once; delivered to who listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import apsw
import pytest
from fake_peers import FakePeer, memory_file, open_descriptors, reference

from lorry import errors
from lorry.clock import ManualClock
from lorry.model.records import AppRecord, AppState, CallKind, Selection, Status
from lorry.server import journal as module
from lorry.server.journal import Journal, Outcome, new_call
from lorry.server.parcels import Broker, Parcel, Spool
from lorry.store import sqlite
from lorry.store.interface import Store
from lorry.store.memory import MemoryStore
from lorry.store.sqlite import SqliteStore
from lorry.wire.frames import HEADER_SIZE, MAX_FRAME, MAX_INLINE, Flag, Kind, unpack_selection

CALL = bytes(range(16))


class Bench:
    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self.store = store or MemoryStore()
        self.broker = Broker()
        self.clock = ManualClock()
        self.journal = Journal(self.store, Spool(folder, self.broker), self.broker, self.clock)

    async def app(self) -> int:
        await self.store.add_app(AppRecord(app_id="ap", name="n", state=AppState.DETACHED, created_at=1.0))
        return await self.store.add_function("ap", "f", "{}")

    async def call(self, kind: CallKind = CallKind.MAP, keep: bool = True) -> None:
        record = new_call(CALL, "ap", await self.app(), kind, 1.0, None, keep)
        if kind is CallKind.MAP:
            assert await self.journal.open_call(record)
        else:
            assert await self.journal.accept_spawn(record, Parcel(b"input"))

    def segment(self, owner: FakePeer, number: int = 1) -> Parcel:
        return self.broker.receive(owner, Flag.SEGMENT, reference(number), [memory_file(b"r" * 64)])  # type: ignore[arg-type]

    def outcome(self, indices: Selection, parcel: Parcel | None = None, chunk: int = 0) -> Outcome:
        return Outcome(CALL, chunk, indices, Status.OK, parcel or Parcel(b"out"), 5, True)

    async def record(self, indices: Selection, parcel: Parcel | None = None) -> None:
        self.journal.record(self.outcome(indices, parcel))
        await self.journal.settle()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def covered(peer: FakePeer) -> list[Selection]:
    return [
        unpack_selection(memoryview(body))[0] for header, body in peer.kinds(Kind.RESULT) if header[1] & Flag.SELECT
    ]


def test_a_spawn_is_accepted_once(bench: Bench) -> None:
    async def main() -> None:
        await bench.call(CallKind.SPAWN)
        again = new_call(CALL, "ap", 1, CallKind.SPAWN, 1.0, None, True)
        assert not await bench.journal.accept_spawn(again, Parcel(b"input"))
        assert bench.journal.payload(CALL, 0).body == b"input"

    run(main())


def test_results_go_to_the_subscriber_and_a_second_one_for_an_input_does_not(bench: Bench) -> None:
    async def main() -> None:
        await bench.call()
        await bench.journal.accept_chunk(CALL, 0, 4, Parcel(b"inputs"))
        peer = FakePeer()
        bench.journal.subscribe(CALL, peer)  # type: ignore[arg-type]
        await bench.record(((0, 2),))
        await bench.record(((1, 3),))
        await bench.record(((2, 4),))
        assert covered(peer) == [((0, 2),), ((2, 4),)]

    run(main())


def test_a_late_subscriber_gets_what_is_there_and_then_what_comes(bench: Bench) -> None:
    async def main() -> None:
        await bench.call(keep=False)
        await bench.journal.accept_chunk(CALL, 0, 3, Parcel(b"inputs"))
        await bench.record(((0, 1),))
        await bench.record(((1, 2),))
        peer = FakePeer()
        bench.journal.subscribe(CALL, peer)  # type: ignore[arg-type]
        await bench.record(((2, 3),))
        assert covered(peer) == [((0, 1),), ((1, 2),), ((2, 3),)]
        await bench.journal.acknowledge(CALL, 0, ((0, 2),))
        other = FakePeer()
        bench.journal.subscribe(CALL, other)  # type: ignore[arg-type]
        assert covered(other) == [((2, 3),)]

    run(main())


def test_large_results_are_files_and_their_descriptors_end_with_their_readers(bench: Bench) -> None:
    async def main() -> None:
        await bench.call(CallKind.SPAWN)
        owner, reader = FakePeer(), FakePeer()
        before = open_descriptors()
        await bench.record(((0, 1),), bench.segment(owner))
        assert [header[4] for header, _ in owner.kinds(Kind.RELEASE)] == [1]
        bench.broker.peer_gone(owner)  # type: ignore[arg-type]
        assert await bench.journal.fetch(reader, 3, CALL, 0, 0, None)  # type: ignore[arg-type]
        (header, _) = reader.kinds(Kind.RESULT)[0]
        assert header[4] == 3
        assert len(reader.mapped) == 1
        bench.broker.released(reader, next(iter(reader.mapped)))  # type: ignore[arg-type]
        assert open_descriptors() == before
        gone = FakePeer()
        gone.close()
        bench.journal.subscribe(CALL, gone)  # type: ignore[arg-type]
        assert open_descriptors() == before

    run(main())


def test_files_of_large_payloads_go_when_nothing_needs_them(bench: Bench, tmp_path: Path) -> None:
    def files() -> int:
        return len(list(tmp_path.glob("*/*")))

    async def main() -> None:
        client, container = FakePeer(), FakePeer()
        await bench.call(keep=False)
        assert await bench.journal.accept_chunk(CALL, 0, 4, bench.segment(client))
        assert not await bench.journal.accept_chunk(CALL, 0, 4, bench.segment(client, 2)), "sent a second time"
        assert files() == 1
        await bench.record(((0, 2),), bench.segment(container))
        assert files() == 2, "half of its inputs may run again"
        await bench.record(((1, 3),), bench.segment(container, 2))
        assert files() == 2, "a second result for an input was kept"
        await bench.record(((2, 4),), bench.segment(container, 3))
        assert files() == 2, "the inputs are over, both results wait"
        await bench.journal.acknowledge(CALL, 0, ((0, 1),))
        assert files() == 2, "half of a result was read"
        await bench.journal.acknowledge(CALL, 0, ((1, 2),))
        assert files() == 1
        await bench.journal.acknowledge(CALL, 0, ((2, 4),))
        assert files() == 0

    run(main())


def test_a_result_that_finds_the_disk_full_keeps_its_segment_until_it_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL_PAUSE", 0.001)

    async def main() -> None:
        await bench.call(CallKind.SPAWN)
        owner = FakePeer()
        parcel = bench.segment(owner)
        tries = iter([True, True, False])
        real = bench.store.record_results

        def record(results: Any) -> Any:
            assert parcel.segment is not None
            assert parcel.segment.users
            assert owner.kinds(Kind.RELEASE) == []
            if next(tries):
                raise errors.StorageFullError("full")
            return real(results)

        monkeypatch.setattr(bench.store, "record_results", record)
        await bench.record(((0, 1),), parcel)
        assert len(owner.kinds(Kind.RELEASE)) == 1
        assert bench.store.result(CALL, 0, 0) is not None

    run(main())


def test_a_server_that_stops_does_not_wait_for_a_full_disk_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE", 0.05)

    async def main() -> None:
        await bench.call(CallKind.SPAWN)

        def full(_results: Any) -> Any:
            raise errors.StorageFullError("full")

        monkeypatch.setattr(bench.store, "record_results", full)
        await bench.record(((0, 1),))
        for task in bench.journal._tasks:
            task.cancel()

    run(main())


def test_a_result_is_written_and_delivered_once_nobody_else_keeps_the_database_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MILLISECONDS", 1)
    monkeypatch.setattr(module, "FULL_PAUSE", 0.001)

    async def main() -> None:
        bench = Bench(tmp_path / "spool", SqliteStore.open(tmp_path / "lorry.db", 1.0))
        await bench.call(CallKind.SPAWN)
        asking = await _waiting(bench, FakePeer(), None)
        other = apsw.Connection(str(tmp_path / "lorry.db"))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.ResourceError, match="locked"):
            await bench.store.set_app("ap", AppState.DETACHED)
        bench.journal.record(bench.outcome(((0, 1),)))
        await asyncio.sleep(0)
        with pytest.raises(errors.ResourceError, match="locked"):  # behind it, in the writer's order
            await bench.store.set_app("ap", AppState.DETACHED)
        other.execute("COMMIT")
        assert await asking
        bench.store.close()

    run(main())


async def _waiting(bench: Bench, peer: FakePeer, wait: float | None) -> asyncio.Task[bool]:
    task = asyncio.ensure_future(bench.journal.fetch(peer, 1, CALL, 0, 0, wait))  # type: ignore[arg-type]
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def test_a_waiting_request_gets_its_result_when_it_is_recorded(bench: Bench) -> None:
    async def main() -> None:
        await bench.call(CallKind.SPAWN)
        peer = FakePeer()
        task = await _waiting(bench, peer, None)
        assert not task.done()
        await bench.record(((0, 1),))
        assert await task
        assert covered(peer) == [((0, 1),)]
        assert bench.journal._listeners == {}

    run(main())


def test_a_client_that_vanishes_leaves_no_waiting_request_behind(bench: Bench) -> None:
    async def main() -> None:
        await bench.call(CallKind.SPAWN)
        peer, patient = FakePeer(), FakePeer()
        task, other = await _waiting(bench, peer, None), await _waiting(bench, patient, None)
        peer.close()
        bench.journal.unsubscribe(peer)  # type: ignore[arg-type]
        await task
        assert not other.done()
        patient.close()
        bench.journal.unsubscribe(patient)  # type: ignore[arg-type]
        await other
        assert bench.journal._listeners == {}

    run(main())


def test_an_impatient_request_is_told_that_it_is_not_ready(bench: Bench) -> None:
    async def main() -> None:
        await bench.call(CallKind.SPAWN)
        assert not await bench.journal.fetch(FakePeer(), 1, CALL, 0, 0, 0)  # type: ignore[arg-type]

    run(main())


Act = Callable[[Bench], Coroutine[Any, Any, Any]]


async def _cancel(bench: Bench) -> None:
    assert await bench.journal.cancel(CALL)
    assert not await bench.journal.cancel(CALL)


def test_a_cancelled_call_wakes_and_tells_everyone(bench: Bench) -> None:
    async def main() -> None:
        await bench.call(CallKind.SPAWN)
        subscriber = FakePeer()
        bench.journal.subscribe(CALL, subscriber)  # type: ignore[arg-type]
        task = await _waiting(bench, FakePeer(), None)
        await _cancel(bench)
        with pytest.raises(errors.CallCancelledError):
            await task
        assert [header[2] for header, _ in subscriber.kinds(Kind.RESULT)] == [Status.CANCELLED]

    run(main())


def test_what_will_never_come_is_told_at_once(bench: Bench) -> None:
    async def main() -> None:
        with pytest.raises(errors.OutputExpiredError):
            await bench.journal.fetch(FakePeer(), 1, CALL, 0, 0, None)  # type: ignore[arg-type]
        await bench.call(CallKind.SPAWN)
        await bench.record(((0, 1),))
        with pytest.raises(errors.NotFoundError, match="no such input"):
            await bench.journal.fetch(FakePeer(), 1, CALL, 0, 5, None)  # type: ignore[arg-type]

    run(main())


def test_one_outcome_of_scattered_inputs_goes_in_frames_that_are_not_too_large(bench: Bench) -> None:
    async def main() -> None:
        await bench.call()
        await bench.journal.accept_chunk(CALL, 0, 5000, Parcel(b"inputs"))
        peer = FakePeer()
        bench.journal.subscribe(CALL, peer)  # type: ignore[arg-type]
        scattered = tuple((i, i + 1) for i in range(0, 5000, 2))
        text = Parcel(b"x" * MAX_INLINE)
        bench.journal.record(Outcome(CALL, 0, scattered, Status.CANCELLED, text, 0, False))
        await bench.journal.settle()
        assert sum(covered(peer), ()) == scattered
        assert max(HEADER_SIZE + len(body) for _, body in peer.got) <= MAX_FRAME

    run(main())
