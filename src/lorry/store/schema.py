"""Tables of the SQLite store, their version, and the pragmas that its promises rest on."""

from __future__ import annotations

import apsw

from lorry.errors import VersionError
from lorry.store.rows import rows

SCHEMA_VERSION = 2

PRAGMAS = """
PRAGMA auto_vacuum = INCREMENTAL;  -- `expire` gives pages back; counts only while the file is new
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;          -- an acknowledged write survives power loss, not only kill -9
PRAGMA foreign_keys = ON;
PRAGMA wal_autocheckpoint = 0;      -- the writer checkpoints itself, after it has acknowledged
PRAGMA journal_size_limit = 67108864;
PRAGMA cache_size = -16000;
PRAGMA temp_store = MEMORY;
"""

# Payloads have tables or columns of their own, last in the row: an update of a small column would otherwise
# rewrite the 64 KiB beside it. A chunk's `left` is the schema's own guard of "one result": two results for an
# input would take it below zero. This is version 1; STEPS has what came later.
TABLES = """
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    opened_at REAL NOT NULL
);
INSERT INTO meta VALUES (1, 0, 0);

CREATE TABLE app (
    seq INTEGER PRIMARY KEY,
    app_id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ephemeral', 'detached', 'deployed', 'stopped')),
    created_at REAL NOT NULL,
    stopped_at REAL,
    client_pid INTEGER,
    client_started REAL,
    version INTEGER NOT NULL CHECK (version >= 0)
);
CREATE UNIQUE INDEX app_version ON app (name, version) WHERE version > 0;
CREATE INDEX app_created ON app (created_at);

-- Outlives the apps, so that a version number never comes twice.
CREATE TABLE deployment (
    name TEXT PRIMARY KEY,
    highest INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE function (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    app_id TEXT NOT NULL REFERENCES app (app_id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    spec TEXT NOT NULL,
    UNIQUE (app_id, tag, spec)
);

CREATE TABLE call (
    seq INTEGER PRIMARY KEY,
    call BLOB NOT NULL UNIQUE CHECK (length(call) = 16),
    app_id TEXT NOT NULL,
    function INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('spawn', 'map')),
    state TEXT NOT NULL CHECK (state IN ('open', 'closed', 'done', 'cancelled')),
    created_at REAL NOT NULL,
    inputs INTEGER NOT NULL,
    finished INTEGER NOT NULL CHECK (finished BETWEEN 0 AND inputs),
    parent BLOB,
    finished_at REAL,
    keep_results INTEGER NOT NULL,
    settled BLOB NOT NULL,          -- chunk numbers that are acknowledged and deleted, packed
    CHECK (state != 'done' OR finished = inputs),
    CHECK ((state IN ('done', 'cancelled')) = (finished_at IS NOT NULL))
);
CREATE INDEX call_app ON call (app_id, created_at);
CREATE INDEX call_parent ON call (parent) WHERE parent IS NOT NULL;
CREATE INDEX call_unfinished ON call (created_at) WHERE state IN ('open', 'closed');
CREATE INDEX call_finished ON call (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE chunk (
    id INTEGER PRIMARY KEY,
    call BLOB NOT NULL REFERENCES call (call) ON DELETE CASCADE,
    chunk INTEGER NOT NULL CHECK (chunk >= 0),
    inputs INTEGER NOT NULL CHECK (inputs > 0),
    "left" INTEGER NOT NULL CHECK ("left" BETWEEN 0 AND inputs),
    done BLOB NOT NULL,             -- finished inputs, packed
    acknowledged BLOB NOT NULL,     -- of these, packed
    attempts BLOB NOT NULL,         -- (index, attempts) as uint32 pairs
    UNIQUE (call, chunk)
);

CREATE TABLE payload (
    id INTEGER PRIMARY KEY REFERENCES chunk (id) ON DELETE CASCADE,
    payload BLOB NOT NULL
);

CREATE TABLE result (
    id INTEGER PRIMARY KEY,
    chunk_id INTEGER NOT NULL REFERENCES chunk (id) ON DELETE CASCADE,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL CHECK (last > first),   -- end of the last range, exclusive
    indices BLOB NOT NULL,
    status INTEGER NOT NULL CHECK (status IN (0, 1, 2, 3, 4, 5, 7)),   -- 6, YIELD, is no end
    finished_at REAL NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (chunk_id, first)
);

CREATE TABLE container (
    seq INTEGER PRIMARY KEY,
    container_id TEXT NOT NULL UNIQUE,
    app_id TEXT NOT NULL,
    function INTEGER NOT NULL,
    token TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_started INTEGER NOT NULL,
    state TEXT NOT NULL,
    created_at REAL NOT NULL,
    resources TEXT NOT NULL,
    stopped_at REAL,
    reason TEXT NOT NULL,
    peak_memory INTEGER NOT NULL
);
CREATE INDEX container_live ON container (created_at) WHERE stopped_at IS NULL;
CREATE INDEX container_stopped ON container (stopped_at) WHERE stopped_at IS NOT NULL;

CREATE TABLE usage (
    container_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    function INTEGER NOT NULL,
    started_at REAL NOT NULL,
    ended_at REAL NOT NULL,
    cores REAL NOT NULL,
    memory_mib INTEGER NOT NULL,
    gpu_model TEXT NOT NULL,
    gpus INTEGER NOT NULL,
    cpu_seconds REAL NOT NULL,
    peak_memory_mib INTEGER NOT NULL,
    PRIMARY KEY (container_id, started_at)
) WITHOUT ROWID;
CREATE INDEX usage_app ON usage (app_id, started_at);

CREATE TABLE decision (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    subject TEXT NOT NULL,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE INDEX decision_subject ON decision (subject, at);
CREATE INDEX decision_at ON decision (at);

CREATE TABLE volume (
    seq INTEGER PRIMARY KEY,
    volume_id TEXT NOT NULL UNIQUE,
    name TEXT UNIQUE,
    created_at REAL NOT NULL
);

CREATE TABLE secret (
    seq INTEGER PRIMARY KEY,
    secret_id TEXT NOT NULL UNIQUE,
    name TEXT UNIQUE,
    keys TEXT NOT NULL,             -- JSON array
    sealed BLOB NOT NULL,
    created_at REAL NOT NULL,
    used_at REAL
);
"""

# The head may be moved by the attempt with the newest token only, and never names one that has not begun.
RUNS = """
CREATE TABLE run (
    seq INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    app_id TEXT NOT NULL,
    app_name TEXT NOT NULL,
    tag TEXT NOT NULL,
    function INTEGER NOT NULL,
    call BLOB NOT NULL CHECK (length(call) = 16),
    chunk INTEGER NOT NULL CHECK (chunk >= 0),
    state TEXT NOT NULL CHECK (state IN ('running', 'waiting', 'done', 'failed', 'cancelled')),
    created_at REAL NOT NULL,
    since REAL NOT NULL,
    folder TEXT NOT NULL,
    finished_at REAL,
    token INTEGER NOT NULL CHECK (token >= 0),
    head_manifest TEXT,
    head_step INTEGER,
    head_token INTEGER CHECK (head_token <= token),
    attempts INTEGER NOT NULL,
    tries INTEGER NOT NULL CHECK (tries BETWEEN 0 AND attempts),
    slices INTEGER NOT NULL,
    interruptions INTEGER NOT NULL,
    seconds REAL NOT NULL,
    error TEXT NOT NULL,
    UNIQUE (call, chunk),
    CHECK ((state IN ('running', 'waiting')) = (finished_at IS NULL)),
    CHECK ((head_manifest IS NULL) = (head_step IS NULL) AND (head_step IS NULL) = (head_token IS NULL))
);
CREATE INDEX run_created ON run (created_at);
CREATE INDEX run_app ON run (app_id, created_at);
CREATE INDEX run_under_way ON run (created_at) WHERE finished_at IS NULL;
CREATE INDEX run_finished ON run (finished_at) WHERE finished_at IS NOT NULL;
CREATE TRIGGER run_token_grows BEFORE UPDATE OF token ON run WHEN new.token <= old.token
BEGIN SELECT raise(ABORT, 'a token that does not grow'); END;

CREATE TABLE attempt (
    run_id TEXT NOT NULL REFERENCES run (run_id) ON DELETE CASCADE,
    token INTEGER NOT NULL,
    container_id TEXT NOT NULL,
    started_at REAL NOT NULL,
    first_step INTEGER,
    ended_at REAL,
    last_step INTEGER,
    ended TEXT CHECK (ended IN ('continue', 'finished', 'error', 'timeout', 'cancelled', 'killed')),
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (run_id, token),
    CHECK ((ended IS NULL) = (ended_at IS NULL))
) WITHOUT ROWID;
CREATE UNIQUE INDEX attempt_open ON attempt (run_id) WHERE ended_at IS NULL;
"""

STEPS = {1: RUNS}
"""By version: what makes the next one of it."""

SET_VERSION = f"PRAGMA user_version = {SCHEMA_VERSION}"
NEXT_EPOCH = "UPDATE meta SET epoch = epoch + 1, opened_at = ? RETURNING epoch"


def prepare(connection: apsw.Connection, path: str, now: float) -> int:
    """Create the tables if the file is new, bring those of older code up to date, refuse those of newer code, and start
    the next epoch. All of it or nothing."""
    rows(connection, PRAGMAS)  # to the end: a pragma that answers would stop the ones after it
    connection.execute("BEGIN IMMEDIATE")
    try:
        ((found,),) = rows(connection, "PRAGMA user_version")
        if found > SCHEMA_VERSION:
            raise VersionError(
                f"The state in {path} was written by a newer Lorry (schema {found}; this one knows "
                f"{SCHEMA_VERSION}). Upgrade Lorry, or point LORRY_STATE_DIR at another folder."
            )
        if found == 0:
            rows(connection, TABLES)
            found = 1
        for version in range(found, SCHEMA_VERSION):
            rows(connection, STEPS[version])
        connection.execute(SET_VERSION)
        ((epoch,),) = rows(connection, NEXT_EPOCH, (now,))
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return int(epoch)
