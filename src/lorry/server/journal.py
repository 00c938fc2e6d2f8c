"""Durable calls: accepted when they are on disk, their results recorded once, delivered to whoever listens.

A call has at most one subscriber (the `.map` that made it) and any number of waiters (`FunctionCall.get`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from lorry import faults
from lorry.clock import Clock
from lorry.errors import CallCancelledError, Error, NotFoundError, OutputExpiredError, ResourceError, StorageFullError
from lorry.model import selection as sel
from lorry.model.records import CallKind, CallRecord, CallState, ChunkRecord, ResultRecord, Selection, Status
from lorry.scheduler.queue import MOST_RANGES
from lorry.server.parcels import Broker, Parcel, Spool
from lorry.server.peers import Peer
from lorry.store.interface import Store
from lorry.wire.frames import MAX_RANGES, Flag, Kind, pack, pack_selection

SETTLE = 10.0
"""Seconds that a server which stops waits for its last results to be on disk."""
FULL_PAUSE = 1.0
"""Seconds between two tries to write a result that was refused."""


class Outcome(NamedTuple):
    """Results of some inputs on their way to disk and then to the client."""

    call: bytes
    chunk: int
    indices: Selection
    status: Status
    parcel: Parcel
    micros: int
    batch: bool


@dataclass(slots=True, eq=False)
class _Listeners:
    subscriber: Peer | None = None
    waiters: dict[asyncio.Future[None], Peer] = field(default_factory=dict)


class Journal:
    def __init__(self, store: Store, spool: Spool, broker: Broker, clock: Clock) -> None:
        self._store = store
        self._spool = spool
        self._broker = broker
        self._clock = clock
        self._listeners: dict[bytes, _Listeners] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.recorded: Callable[[Outcome], Awaitable[None] | None] = lambda _outcome: None
        """A result is on disk. Whoever waits for it is told after what this returns."""

    # Accepting

    async def accept_spawn(self, call: CallRecord, parcel: Parcel) -> bool:
        """On disk when it returns. False if the client had sent it before."""
        payload = await self._durable(call.call, parcel)
        chunk = ChunkRecord(call=call.call, chunk=0, inputs=1, payload=payload)
        accepted = await self._store.accept_spawn(call, chunk)
        if not accepted:
            self._spool.remove(payload)
        if faults.armed:
            faults.point("worker.after_accept")
        return accepted

    async def open_call(self, call: CallRecord) -> bool:
        return await self._store.open_call(call)

    async def accept_chunk(self, call: bytes, chunk: int, inputs: int, parcel: Parcel) -> bool:
        payload = await self._durable(call, parcel)
        accepted = await self._store.accept_chunk(ChunkRecord(call=call, chunk=chunk, inputs=inputs, payload=payload))
        if not accepted:
            self._spool.remove(payload)
        if faults.armed:
            faults.point("worker.after_accept")
        return accepted

    async def close_call(self, call: bytes) -> None:
        await self._store.close_call(call, self._clock.wall())
        self._wake(call)

    async def _durable(self, call: bytes, parcel: Parcel) -> bytes:
        small = self._spool.small(parcel)
        if small is not None:
            return small
        try:
            return await asyncio.to_thread(self._spool.write, call, parcel)
        except OSError as full:
            raise StorageFullError(
                f"a payload of {parcel.size():,} bytes does not fit into the state directory: {full.strerror}. "
                "Nothing acknowledged is lost; free space with `lorry prune` or set LORRY_STATE_DIR"
            ) from full

    def payload(self, call: bytes, chunk: int) -> Parcel:
        """The inputs of a chunk, from disk. NotFoundError if the call was cancelled meanwhile."""
        return self._spool.open(self._store.chunk(call, chunk).payload)

    # Results

    def record(self, outcome: Outcome) -> None:
        """Write, then deliver. The write is started at once, so that commits are shared."""
        for part in _frames_of(outcome):
            self._broker.hold(part.parcel, part)
            task = asyncio.get_running_loop().create_task(self._record(part))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _record(self, outcome: Outcome) -> None:
        try:
            while not await self._written(outcome):
                await asyncio.sleep(FULL_PAUSE)
        finally:
            self._broker.let_go(outcome.parcel, outcome)

    async def _written(self, outcome: Outcome) -> bool:
        """False when the disk is full, or somebody else keeps the database locked: the result waits in memory and is
        tried again; its input is acknowledged work."""
        try:
            payload = await self._durable(outcome.call, outcome.parcel)
            if faults.armed:
                faults.point("worker.before_result_commit")
            accepted = await self._store.record_results([self._row(outcome, payload)])
        except ResourceError:
            return False
        if faults.armed:
            faults.point("worker.after_result_commit")
        if not accepted[0]:
            self._spool.remove(payload)
            return True
        if self._spool.holds(outcome.call):
            self._drop_inputs(outcome)
        following = self.recorded(outcome)
        if following is not None:
            await following
        self._deliver(outcome)
        return True

    def _drop_inputs(self, outcome: Outcome) -> None:
        """The file of a chunk whose inputs all have results: none of them runs again."""
        with contextlib.suppress(NotFoundError):
            chunk = self._store.chunk(outcome.call, outcome.chunk)
            if sel.count(chunk.done) == chunk.inputs:
                self._spool.remove(chunk.payload)

    def _row(self, outcome: Outcome, payload: bytes) -> ResultRecord:
        flag = b"\1" if outcome.batch else b"\0"
        return ResultRecord(
            call=outcome.call,
            chunk=outcome.chunk,
            indices=outcome.indices,
            status=outcome.status,
            payload=flag + payload,
            finished_at=self._clock.wall(),
        )

    def _deliver(self, outcome: Outcome) -> None:
        listeners = self._listeners.get(outcome.call)
        if listeners is None:
            return
        if listeners.subscriber is not None:
            self._send(listeners.subscriber, outcome)
        self._wake(outcome.call)

    def _wake(self, call: bytes) -> None:
        listeners = self._listeners.get(call)
        if listeners is not None:
            for waiter in listeners.waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _send(self, peer: Peer, outcome: Outcome, number: int | None = None) -> None:
        flags = Flag.SELECT | (Flag.BATCH if outcome.batch else 0)
        count = sum(high - low for low, high in outcome.indices)
        header = (
            Kind.RESULT,
            flags,
            outcome.status,
            0,
            outcome.chunk if number is None else number,
            0,
            outcome.call,
            outcome.micros,
            count,
        )
        assert len(outcome.indices) <= MAX_RANGES
        self._broker.send(peer, header, outcome.parcel, pack_selection(outcome.indices))

    def _send_row(self, peer: Peer, row: ResultRecord, number: int | None = None) -> None:
        parcel = self._spool.open(row.payload[1:])
        outcome = Outcome(row.call, row.chunk, row.indices, row.status, parcel, 0, row.payload[:1] == b"\1")
        self._broker.hold(parcel, outcome)  # so that its file is closed if the peer has gone
        self._send(peer, outcome, number)
        self._broker.let_go(parcel, outcome)

    # Listening

    def subscribe(self, call: bytes, peer: Peer) -> None:
        """Results go to this peer as they are recorded. Those that are there already go first."""
        self._listeners.setdefault(call, _Listeners()).subscriber = peer
        after = (-1, -1)
        while rows := self._store.results(call, after=after):
            for row in rows:
                self._send_row(peer, row)
            after = (rows[-1].chunk, rows[-1].indices[0][0])

    def unsubscribe(self, peer: Peer) -> None:
        """It has gone: it listens to nothing, and its waiting requests end."""
        for call, listeners in list(self._listeners.items()):
            for waiter, waiting in listeners.waiters.items():
                if waiting is peer and not waiter.done():
                    waiter.set_result(None)
            if listeners.subscriber is peer:
                listeners.subscriber = None
                if not listeners.waiters:
                    del self._listeners[call]

    async def acknowledge(self, call: bytes, chunk: int, indices: Selection) -> None:
        starts = [low for low, _ in indices] if self._spool.holds(call) else []
        before = [self._store.result(call, chunk, start) for start in starts]
        await self._store.acknowledge(call, chunk, indices)
        for start, row in zip(starts, before, strict=True):
            if row is not None and self._store.result(call, chunk, start) is None:
                self._spool.remove(row.payload[1:])

    async def fetch(self, peer: Peer, number: int, call: bytes, chunk: int, index: int, wait: float | None) -> bool:
        """Send the result of one input as a RESULT frame of this request's number. False: not ready in time."""
        deadline = None if wait is None else self._clock.monotonic() + wait
        while True:
            over = self._over(call)  # asked first: a result that is committed meanwhile is found below
            row = self._store.result(call, chunk, index)
            if row is not None:
                self._send_row(peer, row, number)
                return True
            if peer.closed:  # nobody waits any more
                return True
            if over is not None:
                raise over
            left = None if deadline is None else deadline - self._clock.monotonic()
            if left is not None and left <= 0:
                return False
            await self._wait(call, peer, left)

    def _over(self, call: bytes) -> Error | None:
        """Why an input of this call that has no result row now will never have one; None if it may."""
        name = f"fc-{call.hex()}"
        try:
            record = self._store.call(call)
        except NotFoundError:
            return OutputExpiredError(
                f"the result of {name} is not kept any more (results stay 7 days), or the id is wrong"
            )
        if record.state is CallState.CANCELLED:
            return CallCancelledError(f"{name} was cancelled")
        if record.state is CallState.DONE:
            return NotFoundError(f"{name} is done and has no such input, or its result was read by a map")
        return None

    async def _wait(self, call: bytes, peer: Peer, seconds: float | None) -> None:
        listeners = self._listeners.setdefault(call, _Listeners())
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        listeners.waiters[waiter] = peer
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            del listeners.waiters[waiter]
            if not listeners.waiters and listeners.subscriber is None:
                self._listeners.pop(call, None)

    async def cancel(self, call: bytes) -> bool:
        """Mark cancelled; False if it is over already."""
        cancelled = await self._store.cancel_call(call, self._clock.wall())
        self._wake(call)
        listeners = self._listeners.get(call)
        if cancelled and listeners is not None and listeners.subscriber is not None:
            listeners.subscriber.send(pack(Kind.RESULT, status=Status.CANCELLED, call=call))
        return cancelled

    async def settle(self) -> None:
        """Wait for the writes under way; not for ever, because a full disk may stay full. What is not written then
        runs again at the next start."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SETTLE)


def _frames_of(outcome: Outcome) -> list[Outcome]:
    """One outcome may cover scattered inputs (a cancellation, a failed start): in parts whose selection fits into a
    frame beside the payload. A list of results fits as it is, since a container sent it in one frame."""
    ranges = outcome.indices
    if outcome.batch or len(ranges) <= MOST_RANGES:
        return [outcome]
    starts = range(0, len(ranges), MOST_RANGES)
    return [outcome._replace(indices=ranges[start : start + MOST_RANGES]) for start in starts]


def new_call(
    call: bytes, app_id: str, function: int, kind: CallKind, now: float, parent: bytes | None, keep: bool
) -> CallRecord:
    """The row of a call that comes in now."""
    state = CallState.CLOSED if kind is CallKind.SPAWN else CallState.OPEN
    return CallRecord(
        call=call,
        app_id=app_id,
        function=function,
        kind=kind,
        state=state,
        created_at=now,
        inputs=1 if kind is CallKind.SPAWN else 0,
        parent=parent,
        keep_results=keep,
    )
