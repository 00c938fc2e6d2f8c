"""SQL of apps and functions. Writes run on the writer's thread, in its transaction; reads on the loop's."""

from __future__ import annotations

import apsw

from lorry.errors import AlreadyExistsError, NotFoundError
from lorry.model.records import AppRecord, AppState, FunctionRecord
from lorry.store.rows import APP, FUNCTION, first, records

INSERT_APP = """
INSERT INTO app (app_id, name, state, created_at, stopped_at, client_pid, client_started, version)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
KEEP_VERSION = """
INSERT INTO deployment (name, highest) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET highest = max(highest, excluded.highest)
"""
SET_APP = "UPDATE app SET state = ?, stopped_at = ? WHERE app_id = ?"
APPS = """
SELECT app_id, name, state, created_at, stopped_at, client_pid, client_started, version FROM app
WHERE state != 'stopped' OR NOT ? ORDER BY created_at DESC, seq DESC
"""
APP_BY_ID = """
SELECT app_id, name, state, created_at, stopped_at, client_pid, client_started, version FROM app
WHERE app_id = ?
"""
DEPLOYMENT = """
SELECT app_id, name, state, created_at, stopped_at, client_pid, client_started, version FROM app
WHERE name = ? AND state = 'deployed' ORDER BY version DESC, created_at DESC, seq DESC LIMIT 1
"""
HIGHEST_VERSION = "SELECT highest FROM deployment WHERE name = ?"
FIND_FUNCTION = "SELECT number FROM function WHERE app_id = ? AND tag = ? AND spec = ?"
INSERT_FUNCTION = "INSERT INTO function (app_id, tag, spec) VALUES (?, ?, ?) RETURNING number"
FUNCTION_BY_NUMBER = "SELECT number, app_id, tag, spec FROM function WHERE number = ?"
FUNCTIONS = "SELECT number, app_id, tag, spec FROM function WHERE app_id = ? ORDER BY number"


def add_app(db: apsw.Connection, app: AppRecord) -> None:
    try:
        db.execute(INSERT_APP, APP.values(app))
    except apsw.ConstraintError as error:
        raise AlreadyExistsError(f"App {app.name!r} version {app.version} ({app.app_id}) exists already.") from error
    if app.version:
        db.execute(KEEP_VERSION, (app.name, app.version))


def set_app(db: apsw.Connection, app_id: str, state: AppState, stopped_at: float | None) -> None:
    db.execute(SET_APP, (state, stopped_at, app_id))


def apps(db: apsw.Connection, running_only: bool) -> list[AppRecord]:
    return records(db, APP, APPS, (running_only,))


def app(db: apsw.Connection, app_id: str) -> AppRecord:
    row = first(db, APP_BY_ID, (app_id,))
    if row is None:
        raise NotFoundError(f"There is no app {app_id}.")
    return APP.record(row)


def deployment(db: apsw.Connection, name: str) -> AppRecord | None:
    row = first(db, DEPLOYMENT, (name,))
    return APP.record(row) if row else None


def next_version(db: apsw.Connection, name: str) -> int:
    row = first(db, HIGHEST_VERSION, (name,))
    return int(row[0]) + 1 if row else 1


def add_function(db: apsw.Connection, app_id: str, tag: str, spec: str) -> int:
    row = first(db, FIND_FUNCTION, (app_id, tag, spec))
    if row is None:
        try:
            row = first(db, INSERT_FUNCTION, (app_id, tag, spec))
        except apsw.ConstraintError as error:
            raise NotFoundError(f"There is no app {app_id} to add {tag!r} to.") from error
    assert row is not None
    return int(row[0])


def function(db: apsw.Connection, number: int) -> FunctionRecord:
    row = first(db, FUNCTION_BY_NUMBER, (number,))
    if row is None:
        raise NotFoundError(f"There is no function number {number}.")
    return FUNCTION.record(row)


def functions(db: apsw.Connection, app_id: str) -> list[FunctionRecord]:
    return records(db, FUNCTION, FUNCTIONS, (app_id,))
