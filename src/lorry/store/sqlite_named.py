"""SQL of what users name: volumes and secrets."""

from __future__ import annotations

import json

import apsw

from lorry.errors import AlreadyExistsError, NotFoundError
from lorry.model.records import SecretRecord, VolumeRecord
from lorry.store.rows import SECRET, VOLUME, Row, first, records

INSERT_VOLUME = "INSERT INTO volume (volume_id, name, created_at) VALUES (?, ?, ?)"
VOLUME_BY_NAME = "SELECT volume_id, name, created_at FROM volume WHERE name = ?"
VOLUME_BY_ID = "SELECT volume_id, name, created_at FROM volume WHERE volume_id = ?"
VOLUMES = "SELECT volume_id, name, created_at FROM volume ORDER BY created_at, seq"
DELETE_VOLUME = "DELETE FROM volume WHERE volume_id = ?"
# REPLACE deletes the row of the same id and the row of the same name; NULL names are all different.
PUT_SEALED = """
INSERT OR REPLACE INTO secret (secret_id, name, keys, sealed, created_at, used_at) VALUES (?, ?, ?, ?, ?, ?)
"""
SEALED_BY_NAME = "SELECT secret_id, name, keys, sealed, created_at, used_at FROM secret WHERE name = ?"
SEALED_BY_ID = "SELECT secret_id, name, keys, sealed, created_at, used_at FROM secret WHERE secret_id = ?"
ALL_SEALED = """
SELECT secret_id, name, keys, sealed, created_at, used_at FROM secret WHERE name IS NOT NULL ORDER BY name
"""
DELETE_SEALED = "DELETE FROM secret WHERE secret_id = ?"


def add_volume(db: apsw.Connection, volume: VolumeRecord) -> None:
    try:
        db.execute(INSERT_VOLUME, VOLUME.values(volume))
    except apsw.ConstraintError as error:
        raise AlreadyExistsError(f"Volume {volume.name or volume.volume_id!r} exists already.") from error


def volume(db: apsw.Connection, name: str | None, volume_id: str | None) -> VolumeRecord:
    row = _by_either(db, VOLUME_BY_NAME, VOLUME_BY_ID, name, volume_id)
    if row is None:
        raise NotFoundError(f"There is no volume {name or volume_id!r}.")
    return VOLUME.record(row)


def volumes(db: apsw.Connection) -> list[VolumeRecord]:
    return records(db, VOLUME, VOLUMES)


def delete_volume(db: apsw.Connection, volume_id: str) -> None:
    db.execute(DELETE_VOLUME, (volume_id,))


def put_secret(db: apsw.Connection, secret: SecretRecord) -> None:
    secret_id, name, keys, *rest = SECRET.values(secret)
    db.execute(PUT_SEALED, (secret_id, name, json.dumps(keys), *rest))


def secret(db: apsw.Connection, name: str | None, secret_id: str | None) -> SecretRecord:
    row = _by_either(db, SEALED_BY_NAME, SEALED_BY_ID, name, secret_id)
    if row is None:
        raise NotFoundError(f"There is no secret {name or secret_id!r}.")
    return SECRET.record(row)


def secrets(db: apsw.Connection) -> list[SecretRecord]:
    return records(db, SECRET, ALL_SEALED)


def delete_secret(db: apsw.Connection, secret_id: str) -> None:
    db.execute(DELETE_SEALED, (secret_id,))


def _by_either(db: apsw.Connection, by_name: str, by_id: str, name: str | None, row_id: str | None) -> Row | None:
    """By id where one is given, else by name."""
    return first(db, by_name, (name,)) if row_id is None else first(db, by_id, (row_id,))
