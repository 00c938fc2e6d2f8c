"""Records ↔ rows. A table's columns are named and ordered as the fields of its record."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, Generic, TypeVar

import apsw

from lorry.model.records import (
    AppRecord,
    AppState,
    CallKind,
    CallRecord,
    CallState,
    ContainerRecord,
    DecisionRecord,
    FunctionRecord,
    SecretRecord,
    UsageRecord,
    VolumeRecord,
)
from lorry.model.run import AttemptEnd, AttemptRecord, RunRecord, RunState

T = TypeVar("T")
Row = tuple[Any, ...]


class Shape(Generic[T]):
    """How records of one class lie in a row; `read` converts what SQLite has no type for."""

    def __init__(self, kind: type[T], /, **read: Callable[[Any], Any]) -> None:
        names = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]
        self._kind = kind
        self._names = names
        self._read = tuple((names.index(name), convert) for name, convert in read.items())
        self.values: Callable[[T], Row] = attrgetter(*names)

    def record(self, row: Sequence[Any]) -> T:
        """The record of a row that holds exactly its columns."""
        columns = list(row)
        for position, convert in self._read:
            columns[position] = convert(columns[position])
        return self._kind(**dict(zip(self._names, columns, strict=True)))


APP = Shape(AppRecord, state=AppState)
FUNCTION = Shape(FunctionRecord)
CALL = Shape(CallRecord, kind=CallKind, state=CallState, keep_results=bool)
CONTAINER = Shape(ContainerRecord)
USAGE = Shape(UsageRecord)
DECISION = Shape(DecisionRecord)
VOLUME = Shape(VolumeRecord)
SECRET = Shape(SecretRecord, keys=lambda text: tuple(json.loads(text)))
RUN = Shape(RunRecord, state=RunState)
ATTEMPT = Shape(AttemptRecord, ended=lambda text: text and AttemptEnd(text))


def rows(connection: apsw.Connection, sql: str, bindings: Row = ()) -> list[Row]:
    """All rows at once: a cursor left half read would hold its snapshot, and the log could not be reset."""
    found: list[Row] = connection.execute(sql, bindings).fetchall()
    return found


def first(connection: apsw.Connection, sql: str, bindings: Row = ()) -> Row | None:
    """The first row, of statements that give one at most."""
    found = rows(connection, sql, bindings)
    return found[0] if found else None


def records(connection: apsw.Connection, shape: Shape[T], sql: str, bindings: Row = ()) -> list[T]:
    return [shape.record(row) for row in rows(connection, sql, bindings)]


def pack_attempts(attempts: Mapping[int, int]) -> bytes:
    """(index, attempts) as little-endian uint32 pairs, by index."""
    return b"".join(struct.pack("<II", index, attempts[index]) for index in sorted(attempts))


def unpack_attempts(packed: bytes) -> dict[int, int]:
    pairs: Iterable[tuple[int, int]] = struct.iter_unpack("<II", packed)
    return dict(pairs)
