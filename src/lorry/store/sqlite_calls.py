"""SQL of calls and their chunks."""

from __future__ import annotations

from collections.abc import Mapping

import apsw

from lorry.errors import InvalidError, NotFoundError
from lorry.ids import call_name
from lorry.model.records import CallRecord, CallState, ChunkRecord, Selection
from lorry.model.selection import overlaps, unpack
from lorry.store.rows import CALL, Row, first, pack_attempts, records, rows, unpack_attempts

Unfinished = tuple[CallRecord, int, int, Selection, Mapping[int, int]]
"""What recovery needs of a chunk: its call, its number, how many inputs, which are finished, attempts."""
OLDEST: Row = (float("-inf"), 0, 0)
"""The mark before the first page of `unfinished`."""
PAGE = 512
"""Rows that `unfinished` reads at a time, so that recovery holds no snapshot and little memory."""

INSERT_CALL = """
INSERT INTO call (call, app_id, function, kind, state, created_at, inputs, finished, parent, finished_at,
                  keep_results, settled)
VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, NULL, ?, x'')
ON CONFLICT (call) DO NOTHING
"""
INSERT_CHUNK = """
INSERT INTO chunk (call, chunk, inputs, "left", done, acknowledged, attempts)
VALUES (?, ?, ?, ?, x'', x'', x'')
"""
INSERT_PAYLOAD = "INSERT INTO payload (id, payload) VALUES (?, ?)"
KNOWN_CHUNK = """
SELECT call.state, call.settled, chunk.inputs
FROM call LEFT JOIN chunk ON chunk.call = call.call AND chunk.chunk = ? WHERE call.call = ?
"""
COUNT_INPUTS = "UPDATE call SET inputs = inputs + ? WHERE call = ?"
CLOSE_CALL = """
UPDATE call SET state = CASE WHEN finished = inputs THEN 'done' ELSE 'closed' END,
                finished_at = CASE WHEN finished = inputs THEN ? END
WHERE call = ? AND state = 'open'
"""
CANCEL_CALL = """
UPDATE call SET state = 'cancelled', finished_at = ? WHERE call = ? AND state IN ('open', 'closed')
"""
DROP_PAYLOADS = "DELETE FROM payload WHERE id IN (SELECT id FROM chunk WHERE call = ?)"
ATTEMPTS = "SELECT id, attempts FROM chunk WHERE call = ? AND chunk = ?"
SET_ATTEMPTS = "UPDATE chunk SET attempts = ? WHERE id = ?"

CALL_BY_ID = """
SELECT call, app_id, function, kind, state, created_at, inputs, finished, parent, finished_at, keep_results
FROM call WHERE call = ?
"""
CALLS = """
SELECT call, app_id, function, kind, state, created_at, inputs, finished, parent, finished_at, keep_results
FROM call WHERE app_id = ? ORDER BY created_at DESC, seq DESC LIMIT ?
"""
CHILDREN = """
SELECT call, app_id, function, kind, state, created_at, inputs, finished, parent, finished_at, keep_results
FROM call WHERE parent = ? ORDER BY created_at, seq
"""
CHUNK = """
SELECT chunk.inputs, chunk.done, payload.payload
FROM chunk JOIN payload ON payload.id = chunk.id WHERE chunk.call = ? AND chunk.chunk = ?
"""
UNFINISHED = """
SELECT call.created_at, call.seq, chunk.chunk, chunk.inputs, chunk.done, chunk.attempts,
       call.call, call.app_id, call.function, call.kind, call.state, call.created_at, call.inputs,
       call.finished, call.parent, call.finished_at, call.keep_results
FROM call JOIN chunk ON chunk.call = call.call
WHERE call.state IN ('open', 'closed') AND chunk."left" > 0
  AND call.created_at >= ?1 AND (call.created_at, call.seq, chunk.chunk) > (?1, ?2, ?3)
ORDER BY call.created_at, call.seq, chunk.chunk LIMIT ?4
"""


def accept_spawn(db: apsw.Connection, call: CallRecord, chunk: ChunkRecord) -> bool:
    if not _insert_call(db, call, CallState.CLOSED, chunk.inputs):
        return False
    _insert_chunk(db, chunk)
    return True


def open_call(db: apsw.Connection, call: CallRecord) -> bool:
    return _insert_call(db, call, CallState.OPEN, 0)


def accept_chunk(db: apsw.Connection, chunk: ChunkRecord) -> bool:
    row = first(db, KNOWN_CHUNK, (chunk.chunk, chunk.call))
    if row is None:
        raise NotFoundError(f"There is no call {call_name(chunk.call)}.")
    state, settled, inputs = row
    if inputs is not None and inputs != chunk.inputs:
        raise InvalidError(
            f"Chunk {chunk.chunk} of call {call_name(chunk.call)} came with {inputs} inputs before and with "
            f"{chunk.inputs} now."
        )
    if inputs is not None or overlaps(unpack(settled), ((chunk.chunk, chunk.chunk + 1),)):
        return False
    if state != CallState.OPEN:
        raise InvalidError(f"Call {call_name(chunk.call)} is {state}: no more inputs can follow.")
    _insert_chunk(db, chunk)
    db.execute(COUNT_INPUTS, (chunk.inputs, chunk.call))
    return True


def _insert_call(db: apsw.Connection, call: CallRecord, state: CallState, inputs: int) -> bool:
    bindings: Row = (
        call.call,
        call.app_id,
        call.function,
        call.kind,
        state,
        call.created_at,
        inputs,
        call.parent,
        call.keep_results,
    )
    db.execute(INSERT_CALL, bindings)
    return bool(db.changes())


def _insert_chunk(db: apsw.Connection, chunk: ChunkRecord) -> None:
    db.execute(INSERT_CHUNK, (chunk.call, chunk.chunk, chunk.inputs, chunk.inputs))
    db.execute(INSERT_PAYLOAD, (db.last_insert_rowid(), chunk.payload))


def close_call(db: apsw.Connection, call: bytes, now: float) -> None:
    db.execute(CLOSE_CALL, (now, call))


def cancel_call(db: apsw.Connection, call: bytes, now: float) -> bool:
    db.execute(CANCEL_CALL, (now, call))
    if not db.changes():
        return False
    db.execute(DROP_PAYLOADS, (call,))
    return True


def note_attempts(db: apsw.Connection, call: bytes, chunk: int, attempts: Mapping[int, int]) -> None:
    row = first(db, ATTEMPTS, (call, chunk))
    if row is not None:
        known = unpack_attempts(row[1]) | dict(attempts)
        db.execute(SET_ATTEMPTS, (pack_attempts(known), row[0]))


def call(db: apsw.Connection, call: bytes) -> CallRecord:
    row = first(db, CALL_BY_ID, (call,))
    if row is None:
        raise NotFoundError(f"There is no call {call_name(call)}, or its results have expired.")
    return CALL.record(row)


def calls(db: apsw.Connection, app_id: str, limit: int) -> list[CallRecord]:
    return records(db, CALL, CALLS, (app_id, limit))


def children(db: apsw.Connection, parent: bytes) -> list[CallRecord]:
    return records(db, CALL, CHILDREN, (parent,))


def chunk(db: apsw.Connection, call: bytes, chunk: int) -> ChunkRecord:
    row = first(db, CHUNK, (call, chunk))
    if row is None:
        raise NotFoundError(f"There is no chunk {chunk} of call {call_name(call)}, or its payload is gone.")
    inputs, done, payload = row
    return ChunkRecord(call=call, chunk=chunk, inputs=inputs, payload=payload, done=unpack(done))


def unfinished(db: apsw.Connection, after: Row) -> tuple[list[Unfinished], Row]:
    """The next page after a mark, and the mark for the one that follows."""
    page = rows(db, UNFINISHED, (*after, PAGE))
    found: list[Unfinished] = [
        (CALL.record(columns), number, inputs, unpack(done), unpack_attempts(attempts))
        for _, _, number, inputs, done, attempts, *columns in page
    ]
    return found, page[-1][:3] if page else after
