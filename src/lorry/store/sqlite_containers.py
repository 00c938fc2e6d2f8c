"""SQL of containers, their usage, and the decisions about them."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from lorry.errors import NotFoundError
from lorry.model.records import ContainerRecord, DecisionRecord, UsageRecord
from lorry.store.rows import CONTAINER, DECISION, USAGE, first, records

PUT_CONTAINER = """
INSERT INTO container (container_id, app_id, function, token, pid, pid_started, state, created_at,
                       resources, stopped_at, reason, peak_memory)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (container_id) DO UPDATE SET
    app_id = excluded.app_id, function = excluded.function, token = excluded.token, pid = excluded.pid,
    pid_started = excluded.pid_started, state = excluded.state, created_at = excluded.created_at,
    resources = excluded.resources, stopped_at = excluded.stopped_at, reason = excluded.reason,
    peak_memory = excluded.peak_memory
"""
CONTAINER_BY_ID = """
SELECT container_id, app_id, function, token, pid, pid_started, state, created_at, resources, stopped_at,
       reason, peak_memory
FROM container WHERE container_id = ?
"""
LIVE_CONTAINERS = """
SELECT container_id, app_id, function, token, pid, pid_started, state, created_at, resources, stopped_at,
       reason, peak_memory
FROM container WHERE stopped_at IS NULL AND (?1 IS NULL OR app_id = ?1) ORDER BY created_at DESC, seq DESC
"""
ALL_CONTAINERS = """
SELECT container_id, app_id, function, token, pid, pid_started, state, created_at, resources, stopped_at,
       reason, peak_memory
FROM container WHERE ?1 IS NULL OR app_id = ?1 ORDER BY created_at DESC, seq DESC
"""
PUT_USAGE = """
INSERT OR REPLACE INTO usage (container_id, app_id, function, started_at, ended_at, cores, memory_mib,
                              gpu_model, gpus, cpu_seconds, peak_memory_mib)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
ALL_USAGE = """
SELECT container_id, app_id, function, started_at, ended_at, cores, memory_mib, gpu_model, gpus,
       cpu_seconds, peak_memory_mib
FROM usage ORDER BY started_at, container_id
"""
USAGE_OF_APP = """
SELECT container_id, app_id, function, started_at, ended_at, cores, memory_mib, gpu_model, gpus,
       cpu_seconds, peak_memory_mib
FROM usage WHERE app_id = ? ORDER BY started_at, container_id
"""
INSERT_DECISION = "INSERT INTO decision (at, subject, kind, reason) VALUES (?, ?, ?, ?)"
DECISIONS = """
SELECT at, subject, kind, reason FROM decision WHERE subject = ? ORDER BY at DESC, id DESC LIMIT ?
"""


def put_container(db: apsw.Connection, container: ContainerRecord) -> None:
    db.execute(PUT_CONTAINER, CONTAINER.values(container))


def container(db: apsw.Connection, container_id: str) -> ContainerRecord:
    row = first(db, CONTAINER_BY_ID, (container_id,))
    if row is None:
        raise NotFoundError(f"There is no container {container_id}.")
    return CONTAINER.record(row)


def containers(db: apsw.Connection, app_id: str | None, live_only: bool) -> list[ContainerRecord]:
    return records(db, CONTAINER, LIVE_CONTAINERS if live_only else ALL_CONTAINERS, (app_id,))


def add_usage(db: apsw.Connection, usage: UsageRecord) -> None:
    db.execute(PUT_USAGE, USAGE.values(usage))


def usage(db: apsw.Connection, app_id: str | None) -> list[UsageRecord]:
    if app_id is None:
        return records(db, USAGE, ALL_USAGE)
    return records(db, USAGE, USAGE_OF_APP, (app_id,))


def add_decisions(db: apsw.Connection, decisions: Sequence[DecisionRecord]) -> None:
    db.executemany(INSERT_DECISION, [DECISION.values(decision) for decision in decisions])


def decisions(db: apsw.Connection, subject: str, limit: int) -> list[DecisionRecord]:
    return records(db, DECISION, DECISIONS, (subject, limit))
