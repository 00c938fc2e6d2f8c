"""SQL of results: exactly one for each input, kept until acknowledged or expired."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from lorry.model.records import ResultRecord, Selection, Status
from lorry.model.selection import count, covers, intersect, normalise, overlaps, pack, union, unpack
from lorry.store.rows import Row, first, rows

CHUNK_STATE = """SELECT id, inputs, "left", done FROM chunk WHERE call = ? AND chunk = ?"""
FINISH_INPUTS = """UPDATE chunk SET done = ?, "left" = ? WHERE id = ?"""
INSERT_RESULT = """
INSERT INTO result (chunk_id, first, last, indices, status, finished_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
COUNT_FINISHED = """
UPDATE call SET finished = finished + ?1,
    state = CASE WHEN state = 'closed' AND finished + ?1 = inputs THEN 'done' ELSE state END,
    finished_at = CASE WHEN state = 'closed' AND finished + ?1 = inputs THEN ?2 ELSE finished_at END
WHERE call = ?3
"""
CHUNK_TO_ACKNOWLEDGE = """
SELECT chunk.id, chunk.inputs, chunk.done, chunk.acknowledged, call.settled
FROM chunk JOIN call ON call.call = chunk.call
WHERE chunk.call = ? AND chunk.chunk = ? AND NOT call.keep_results
"""
ROWS_BETWEEN = "SELECT id, indices FROM result WHERE chunk_id = ? AND first < ? AND last > ?"
DELETE_RESULT = "DELETE FROM result WHERE id = ?"
SET_ACKNOWLEDGED = "UPDATE chunk SET acknowledged = ? WHERE id = ?"
DELETE_CHUNK = "DELETE FROM chunk WHERE id = ?"
SET_SETTLED = "UPDATE call SET settled = ? WHERE call = ?"
RESULTS = """
SELECT chunk.call, chunk.chunk, result.indices, result.status, result.payload, result.finished_at
FROM chunk JOIN result ON result.chunk_id = chunk.id
WHERE chunk.call = ?1 AND chunk.chunk >= ?2 AND (chunk.chunk, result.first) > (?2, ?3)
ORDER BY chunk.chunk, result.first LIMIT ?4
"""
RESULTS_AROUND = """
SELECT chunk.call, chunk.chunk, result.indices, result.status, result.payload, result.finished_at
FROM chunk JOIN result ON result.chunk_id = chunk.id
WHERE chunk.call = ? AND chunk.chunk = ? AND result.first <= ? AND result.last > ?
ORDER BY result.first DESC
"""


def record_results(db: apsw.Connection, results: Sequence[ResultRecord]) -> list[bool]:
    finished: dict[bytes, tuple[int, float]] = {}
    kept = []
    for result in results:
        number = _keep(db, result)
        kept.append(number > 0)
        if number:
            before, _ = finished.get(result.call, (0, 0.0))
            finished[result.call] = (before + number, result.finished_at)
    for call, (number, at) in finished.items():
        db.execute(COUNT_FINISHED, (number, at, call))
    return kept


def _keep(db: apsw.Connection, result: ResultRecord) -> int:
    """How many inputs it finished. 0: the chunk is gone, or an input has a result or does not exist."""
    row = first(db, CHUNK_STATE, (result.call, result.chunk))
    wanted = normalise(result.indices)
    if row is None or not wanted:
        return 0
    chunk_id, inputs, left, packed = row
    done = unpack(packed)
    if wanted[-1][1] > inputs or overlaps(done, wanted):
        return 0
    number = count(wanted)
    db.execute(FINISH_INPUTS, (pack(union(done, wanted)), left - number, chunk_id))
    span: Row = (chunk_id, wanted[0][0], wanted[-1][1], pack(wanted))
    db.execute(INSERT_RESULT, (*span, result.status, result.finished_at, result.payload))
    return number


def acknowledge(db: apsw.Connection, call: bytes, chunk: int, indices: Selection) -> None:
    row = first(db, CHUNK_TO_ACKNOWLEDGE, (call, chunk))
    if row is None:
        return
    chunk_id, inputs, done, before, settled = row
    news = intersect(unpack(done), normalise(indices))
    known = union(unpack(before), news)
    if count(known) == inputs:
        # The number stays behind: a chunk that is sent again after a lost acknowledgement must not run again.
        db.execute(DELETE_CHUNK, (chunk_id,))
        db.execute(SET_SETTLED, (pack(union(unpack(settled), ((chunk, chunk + 1),))), call))
    elif news:
        db.execute(SET_ACKNOWLEDGED, (pack(known), chunk_id))
        for result_id, packed in rows(db, ROWS_BETWEEN, (chunk_id, news[-1][1], news[0][0])):
            if covers(known, unpack(packed)):
                db.execute(DELETE_RESULT, (result_id,))


def results(db: apsw.Connection, call: bytes, after: tuple[int, int], limit: int) -> list[ResultRecord]:
    return [_record(row) for row in rows(db, RESULTS, (call, *after, limit))]


def result(db: apsw.Connection, call: bytes, chunk: int, index: int) -> ResultRecord | None:
    for row in rows(db, RESULTS_AROUND, (call, chunk, index, index)):
        record = _record(row)
        if overlaps(record.indices, ((index, index + 1),)):
            return record
    return None


def _record(row: Row) -> ResultRecord:
    call, chunk, packed, status, payload, finished_at = row
    return ResultRecord(
        call=call,
        chunk=chunk,
        indices=unpack(packed),
        status=Status(status),
        payload=payload,
        finished_at=finished_at,
    )
