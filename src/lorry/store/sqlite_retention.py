"""SQL of retention: one small batch at a time, so that other writes get their turn in between."""

from __future__ import annotations

import apsw

from lorry.store.rows import rows

BATCH = 256
"""Rows of one kind that one step deletes."""

LEAST_FREE_PAGES = 4096
"""16 MiB. Less, or less than a quarter of the file, stays in it: the next calls need it again."""

PAGES = "SELECT page_count, freelist_count FROM pragma_page_count, pragma_freelist_count"
FREE_PAGES = "PRAGMA incremental_vacuum(2048)"
# Chunks go before their call: a call of a million inputs would otherwise be one long transaction.
EXPIRED_CHUNKS = """
SELECT chunk.id FROM call JOIN chunk ON chunk.call = call.call WHERE call.finished_at < ? LIMIT ?
"""
COUNT_RESULTS = "SELECT count(*) FROM result WHERE chunk_id = ?"
DELETE_CHUNK = "DELETE FROM chunk WHERE id = ?"
DELETE_CALLS = """
DELETE FROM call WHERE seq IN (
    SELECT seq FROM call WHERE finished_at < ?
    AND NOT EXISTS (SELECT 1 FROM chunk WHERE chunk.call = call.call) LIMIT ?)
"""
DELETE_CONTAINERS = """
DELETE FROM container WHERE seq IN (SELECT seq FROM container WHERE stopped_at < ? LIMIT ?)
"""
DELETE_DECISIONS = "DELETE FROM decision WHERE id IN (SELECT id FROM decision WHERE at < ? LIMIT ?)"
DELETE_APPS = """
DELETE FROM app WHERE seq IN (
    SELECT seq FROM app WHERE state = 'stopped' AND coalesce(stopped_at, created_at) < ?
    AND NOT EXISTS (SELECT 1 FROM call WHERE call.app_id = app.app_id)
    AND NOT EXISTS (SELECT 1 FROM run WHERE run.app_id = app.app_id) LIMIT ?)
"""
DELETE_RUNS = "DELETE FROM run WHERE seq IN (SELECT seq FROM run WHERE finished_at < ? LIMIT ?)"


def expire_batch(db: apsw.Connection, calls_before: float, rows_before: float) -> int:
    """Delete at most a batch of each kind; how many rows went, 0 when nothing is left to delete."""
    gone = 0
    for (chunk_id,) in rows(db, EXPIRED_CHUNKS, (calls_before, BATCH)):
        ((results,),) = rows(db, COUNT_RESULTS, (chunk_id,))
        db.execute(DELETE_CHUNK, (chunk_id,))
        gone += 1 + results
    for statement, before in (
        (DELETE_CALLS, calls_before),
        (DELETE_CONTAINERS, rows_before),
        (DELETE_DECISIONS, rows_before),
        (DELETE_RUNS, rows_before),
        (DELETE_APPS, rows_before),
    ):
        db.execute(statement, (before, BATCH))
        gone += db.changes()
    return gone


def shrink(db: apsw.Connection) -> bool:
    """Give a step's worth of free pages back to the disk; whether another step is worth its writes."""
    ((pages, free),) = rows(db, PAGES)
    if free < LEAST_FREE_PAGES or free < pages // 4:
        return False
    rows(db, FREE_PAGES)
    return True
