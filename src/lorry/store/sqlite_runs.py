"""SQL of training runs and their attempts. Whether an attempt may move a run's head is decided by one statement."""

from __future__ import annotations

from dataclasses import fields

import apsw

from lorry.errors import NotFoundError
from lorry.model.run import INTERRUPTIONS, AttemptEnd, AttemptRecord, RunRecord, RunState
from lorry.store.rows import ATTEMPT, RUN, first, pack_attempts, records, rows

COLUMNS = ", ".join(field.name for field in fields(RunRecord))
ATTEMPT_COLUMNS = ", ".join(field.name for field in fields(AttemptRecord))

INSERT_RUN = f"""
INSERT INTO run ({COLUMNS}) VALUES ({", ".join("?" * len(fields(RunRecord)))})
ON CONFLICT (call, chunk) DO NOTHING
"""  # noqa: S608 - names of our own columns
# A container that asks twice, because the answer was lost, gets a new token for the same attempt.
BEGIN = f"""
UPDATE run SET token = token + 1, state = 'running', finished_at = NULL,
    attempts = attempts + asked.new, tries = tries + asked.new,
    interruptions = interruptions + asked.open
FROM (SELECT
    NOT EXISTS (SELECT 1 FROM attempt JOIN run AS r USING (run_id)
        WHERE r.call = ?1 AND r.chunk = ?2 AND ended_at IS NULL AND container_id = ?3) AS new,
    (SELECT count(*) FROM attempt JOIN run AS r USING (run_id)
        WHERE r.call = ?1 AND r.chunk = ?2 AND ended_at IS NULL AND container_id != ?3) AS open) AS asked
WHERE call = ?1 AND chunk = ?2
RETURNING {COLUMNS}
"""  # noqa: S608
OVERTAKE = """
UPDATE attempt SET ended_at = ?3, ended = 'killed', reason = 'a newer attempt has begun'
WHERE run_id = ?1 AND container_id != ?2 AND ended_at IS NULL
"""
SAME_AGAIN = "UPDATE attempt SET token = ?3 WHERE run_id = ?1 AND container_id = ?2 AND ended_at IS NULL"
INSERT_ATTEMPT = "INSERT INTO attempt (run_id, token, container_id, started_at, first_step) VALUES (?, ?, ?, ?, ?)"
MOVE_HEAD = """
UPDATE run SET head_manifest = ?4, head_step = ?5, head_token = token
WHERE run_id = ?1 AND token = ?2 AND EXISTS (
    SELECT 1 FROM attempt WHERE attempt.run_id = run.run_id AND attempt.token = run.token AND container_id = ?3)
"""
NO_ATTEMPTS = """
UPDATE chunk SET attempts = ?2 FROM run WHERE run.run_id = ?1 AND chunk.call = run.call AND chunk.chunk = run.chunk
"""
END_ATTEMPT = """
UPDATE attempt SET ended_at = ?3, ended = ?4, reason = ?5, last_step = ?6
WHERE run_id = ?1 AND container_id = ?2 AND ended_at IS NULL
"""
COUNT_ATTEMPT = """
UPDATE run SET seconds = seconds + ?2, slices = slices + ?3, interruptions = interruptions + ?4,
    error = CASE WHEN ?5 = '' OR finished_at IS NOT NULL THEN error ELSE ?5 END,
    state = CASE state WHEN 'running' THEN 'waiting' ELSE state END
WHERE run_id = ?1
"""
FINISH = """
UPDATE run SET state = ?3, finished_at = ?4, error = ?5
WHERE call = ?1 AND chunk = ?2 AND state IN ('running', 'waiting')
"""
RESUME = """
UPDATE run SET state = 'waiting', finished_at = NULL, since = ?2, tries = 0, app_id = ?3, function = ?4,
    call = ?5, chunk = 0
WHERE run_id = ?1 AND state IN ('failed', 'cancelled')
"""
RUN_BY_ID = f"SELECT {COLUMNS} FROM run WHERE run_id = ?"  # noqa: S608
RUN_OF = f"SELECT {COLUMNS} FROM run WHERE call = ? AND chunk = ?"  # noqa: S608
RUNS = f"""
SELECT {COLUMNS} FROM run
WHERE (?1 IS NULL OR app_id = ?1) AND substr(run_id, 1, length(?2)) = ?2
    AND (NOT ?3 OR state IN ('running', 'waiting'))
ORDER BY created_at DESC, seq DESC LIMIT ?4
"""  # noqa: S608
RUNS_OF_CALL = f"SELECT {COLUMNS} FROM run WHERE call = ? ORDER BY chunk"  # noqa: S608
ATTEMPTS = f"SELECT {ATTEMPT_COLUMNS} FROM attempt WHERE run_id = ? ORDER BY token"  # noqa: S608
OPEN_ATTEMPTS = f"SELECT {ATTEMPT_COLUMNS} FROM attempt WHERE ended_at IS NULL ORDER BY run_id, token"  # noqa: S608
EVERY = -1
"""As a LIMIT."""


def begin_run(db: apsw.Connection, run: RunRecord, container_id: str, now: float) -> RunRecord:
    db.execute(INSERT_RUN, RUN.values(run))
    row = first(db, BEGIN, (run.call, run.chunk, container_id))
    assert row is not None
    begun = RUN.record(row)
    db.execute(OVERTAKE, (begun.run_id, container_id, now))
    db.execute(SAME_AGAIN, (begun.run_id, container_id, begun.token))
    if not db.changes():
        db.execute(INSERT_ATTEMPT, (begun.run_id, begun.token, container_id, now, begun.head_step))
    return begun


def move_head(db: apsw.Connection, run_id: str, token: int, container_id: str, manifest: str, step: int) -> bool:
    db.execute(MOVE_HEAD, (run_id, token, container_id, manifest, step))
    if not db.changes():
        return False
    db.execute(NO_ATTEMPTS, (run_id, pack_attempts({0: 0})))
    return True


def end_attempt(
    db: apsw.Connection,
    run_id: str,
    container_id: str,
    now: float,
    ended: AttemptEnd,
    reason: str,
    last_step: int | None,
    seconds: float,
) -> bool:
    db.execute(END_ATTEMPT, (run_id, container_id, now, ended, reason, last_step))
    if not db.changes():
        return False
    interrupted = ended in INTERRUPTIONS
    counts = (seconds, ended is AttemptEnd.CONTINUE, interrupted, reason if interrupted else "")
    db.execute(COUNT_ATTEMPT, (run_id, *counts))
    return True


def finish_run(db: apsw.Connection, call: bytes, chunk: int, state: RunState, now: float, error: str) -> None:
    db.execute(FINISH, (call, chunk, state, now, error))


def resume_run(db: apsw.Connection, run_id: str, app_id: str, function: int, call: bytes, now: float) -> bool:
    db.execute(RESUME, (run_id, now, app_id, function, call))
    return db.changes() == 1


def run(db: apsw.Connection, run_id: str) -> RunRecord:
    row = first(db, RUN_BY_ID, (run_id,))
    if row is None:
        raise NotFoundError(f"There is no run {run_id}.")
    return RUN.record(row)


def run_of(db: apsw.Connection, call: bytes, chunk: int) -> RunRecord | None:
    row = first(db, RUN_OF, (call, chunk))
    return RUN.record(row) if row else None


def runs(
    db: apsw.Connection, app_id: str | None, prefix: str, under_way_only: bool, limit: int | None
) -> list[RunRecord]:
    return records(db, RUN, RUNS, (app_id, prefix, under_way_only, EVERY if limit is None else limit))


def runs_of_call(db: apsw.Connection, call: bytes) -> list[RunRecord]:
    return records(db, RUN, RUNS_OF_CALL, (call,))


def attempts(db: apsw.Connection, run_id: str) -> list[AttemptRecord]:
    return [ATTEMPT.record(row) for row in rows(db, ATTEMPTS, (run_id,))]


def open_attempts(db: apsw.Connection) -> list[AttemptRecord]:
    return [ATTEMPT.record(row) for row in rows(db, OPEN_ATTEMPTS)]
