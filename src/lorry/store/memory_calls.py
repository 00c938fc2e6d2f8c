"""Calls, chunks and results of the memory store."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Concatenate, ParamSpec, TypeVar

from lorry.errors import Error, InternalError, InvalidError, NotFoundError
from lorry.ids import call_name
from lorry.model.records import CallRecord, CallState, ChunkRecord, ResultRecord, Selection, Status
from lorry.model.selection import from_indices, indices

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S", bound="MemoryCalls")

LIVE = (CallState.OPEN, CallState.CLOSED)


def writes(verb: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], asyncio.Future[T]]:
    """A write verb's outcome as a future: what the interface asks for."""

    @functools.wraps(verb)
    def write(self: S, /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        self._check_open()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(verb(self, *args, **kwargs))
        except Error as error:
            future.set_exception(error)
        return future

    return write


@dataclass(slots=True, kw_only=True)
class _Chunk:
    """Sets of single indices, on purpose unlike the ranges that the SQLite store computes with."""

    inputs: int
    payload: bytes | None
    done: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)
    results: dict[int, ResultRecord] = field(default_factory=dict)
    """By first index."""


@dataclass(slots=True, kw_only=True)
class _Call:
    record: CallRecord
    chunks: dict[int, _Chunk] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)


class MemoryCalls:
    """The part of `MemoryStore` that follows inputs from their journal entry to their result."""

    def __init__(self) -> None:
        self._closed = False
        self._calls: dict[bytes, _Call] = {}

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the store is closed")

    def _find(self, call: bytes) -> _Call:
        self._check_open()
        if call not in self._calls:
            raise NotFoundError(f"There is no call {call_name(call)}, or its results have expired.")
        return self._calls[call]

    def _chunk_of(self, call: bytes, chunk: int) -> _Chunk | None:
        return self._calls[call].chunks.get(chunk) if call in self._calls else None

    @writes
    def accept_spawn(self, call: CallRecord, chunk: ChunkRecord) -> bool:
        refuse_unless(chunk.inputs > 0)
        if not self._add_call(call, CallState.CLOSED, chunk.inputs):
            return False
        self._calls[call.call].chunks[chunk.chunk] = _Chunk(inputs=chunk.inputs, payload=chunk.payload)
        return True

    @writes
    def open_call(self, call: CallRecord) -> bool:
        return self._add_call(call, CallState.OPEN, 0)

    def _add_call(self, call: CallRecord, state: CallState, inputs: int) -> bool:
        if call.call in self._calls:
            return False
        record = replace(call, state=state, inputs=inputs, finished=0, finished_at=None)
        self._calls[call.call] = _Call(record=record)
        return True

    @writes
    def accept_chunk(self, chunk: ChunkRecord) -> bool:
        call = self._find(chunk.call)
        known = call.chunks.get(chunk.chunk)
        if known is not None and known.inputs != chunk.inputs:
            raise InvalidError(
                f"Chunk {chunk.chunk} of call {call_name(chunk.call)} came with {known.inputs} inputs before "
                f"and with {chunk.inputs} now."
            )
        if known is not None or chunk.chunk in call.settled:
            return False
        if call.record.state != CallState.OPEN:
            raise InvalidError(f"Call {call_name(chunk.call)} is {call.record.state}: no more inputs can follow.")
        refuse_unless(chunk.inputs > 0)
        call.chunks[chunk.chunk] = _Chunk(inputs=chunk.inputs, payload=chunk.payload)
        call.record = replace(call.record, inputs=call.record.inputs + chunk.inputs)
        return True

    @writes
    def close_call(self, call: bytes, now: float) -> None:
        entry = self._calls.get(call)
        if entry is not None and entry.record.state == CallState.OPEN:
            entry.record = replace(entry.record, state=CallState.CLOSED)
            _end_if_finished(entry, now)

    @writes
    def record_results(self, results: Sequence[ResultRecord]) -> Sequence[bool]:
        refuse_unless(all(result.status != Status.YIELD for result in results))
        return [self._keep(result) for result in results]

    def _keep(self, result: ResultRecord) -> bool:
        chunk = self._chunk_of(result.call, result.chunk)
        wanted = {index for lo, hi in result.indices for index in range(lo, hi)}
        if chunk is None or not wanted or wanted & chunk.done or max(wanted) >= chunk.inputs:
            return False
        chunk.done |= wanted
        chunk.results[min(wanted)] = replace(result, indices=from_indices(wanted))
        entry = self._calls[result.call]
        entry.record = replace(entry.record, finished=entry.record.finished + len(wanted))
        _end_if_finished(entry, result.finished_at)
        return True

    @writes
    def acknowledge(self, call: bytes, chunk: int, indices: Selection) -> None:
        entry = self._calls.get(call)
        if entry is None or entry.record.keep_results or chunk not in entry.chunks:
            return
        state = entry.chunks[chunk]
        state.acknowledged |= state.done & {index for lo, hi in indices for index in range(lo, hi)}
        state.results = {
            first: result
            for first, result in state.results.items()
            if not state.acknowledged.issuperset(_members(result))
        }
        if len(state.acknowledged) == state.inputs:
            del entry.chunks[chunk]
            entry.settled.add(chunk)

    @writes
    def cancel_call(self, call: bytes, now: float) -> bool:
        entry = self._calls.get(call)
        if entry is None or entry.record.state not in LIVE:
            return False
        entry.record = replace(entry.record, state=CallState.CANCELLED, finished_at=now)
        for chunk in entry.chunks.values():
            chunk.payload = None
        return True

    @writes
    def note_attempts(self, call: bytes, chunk: int, attempts: Mapping[int, int]) -> None:
        state = self._chunk_of(call, chunk)
        if state is not None:
            state.attempts |= attempts

    def call(self, call: bytes) -> CallRecord:
        return self._find(call).record

    def _all_calls(self) -> list[CallRecord]:
        """Oldest first, in order of arrival among equals."""
        self._check_open()
        return sorted((entry.record for entry in self._calls.values()), key=lambda call: call.created_at)

    def calls(self, app_id: str, *, limit: int = 100) -> Sequence[CallRecord]:
        return [call for call in reversed(self._all_calls()) if call.app_id == app_id][:limit]

    def children(self, parent: bytes) -> Sequence[CallRecord]:
        return [call for call in self._all_calls() if call.parent == parent]

    def chunk(self, call: bytes, chunk: int) -> ChunkRecord:
        self._check_open()
        state = self._chunk_of(call, chunk)
        if state is None or state.payload is None:
            raise NotFoundError(f"There is no chunk {chunk} of call {call_name(call)}, or its payload is gone.")
        done = from_indices(state.done)
        return ChunkRecord(call=call, chunk=chunk, inputs=state.inputs, payload=state.payload, done=done)

    def unfinished(self) -> Iterator[tuple[CallRecord, int, int, Selection, Mapping[int, int]]]:
        for call in self._all_calls():
            for number, chunk in sorted(self._calls[call.call].chunks.items()):
                if call.state in LIVE and len(chunk.done) < chunk.inputs:
                    yield call, number, chunk.inputs, from_indices(chunk.done), dict(chunk.attempts)

    def results(self, call: bytes, *, after: tuple[int, int] = (-1, -1), limit: int = 256) -> Sequence[ResultRecord]:
        self._check_open()
        chunks = self._calls[call].chunks if call in self._calls else {}
        found = {(number, first): result for number, chunk in chunks.items() for first, result in chunk.results.items()}
        return [found[place] for place in sorted(found) if place > after][:limit]

    def result(self, call: bytes, chunk: int, index: int) -> ResultRecord | None:
        self._check_open()
        state = self._chunk_of(call, chunk)
        held = state.results.values() if state else ()
        return next((result for result in held if index in _members(result)), None)

    def _expire_calls(self, before: float) -> int:
        gone = 0
        for entry in list(self._calls.values()):
            if entry.record.finished_at is not None and entry.record.finished_at < before:
                gone += 1 + len(entry.chunks) + sum(len(chunk.results) for chunk in entry.chunks.values())
                del self._calls[entry.record.call]
        return gone

    def _payload_bytes(self) -> int:
        chunks = [chunk for entry in self._calls.values() for chunk in entry.chunks.values()]
        results = [result for chunk in chunks for result in chunk.results.values()]
        return sum(len(chunk.payload or b"") for chunk in chunks) + sum(len(r.payload) for r in results)


def refuse_unless(holds: bool) -> None:
    """What the other store's schema does."""
    if not holds:
        raise InternalError("A write was refused by the store: CHECK constraint failed")


def _members(result: ResultRecord) -> set[int]:
    return set(indices(result.indices))


def _end_if_finished(entry: _Call, now: float) -> None:
    if entry.record.state == CallState.CLOSED and entry.record.finished == entry.record.inputs:
        entry.record = replace(entry.record, state=CallState.DONE, finished_at=now)
