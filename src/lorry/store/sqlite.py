"""`SqliteStore`: the default store. Writes go through one thread, reads through a connection of the loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import apsw

from lorry.errors import InternalError, StorageFullError
from lorry.model.records import (
    AppRecord,
    AppState,
    CallRecord,
    ChunkRecord,
    ContainerRecord,
    DecisionRecord,
    FunctionRecord,
    ResultRecord,
    SecretRecord,
    Selection,
    UsageRecord,
    VolumeRecord,
)
from lorry.model.run import AttemptEnd, AttemptRecord, RunRecord, RunState
from lorry.store import (
    sqlite_apps,
    sqlite_calls,
    sqlite_containers,
    sqlite_named,
    sqlite_results,
    sqlite_retention,
    sqlite_runs,
)
from lorry.store.filesystem import refuse_network_filesystem
from lorry.store.schema import prepare
from lorry.store.writer import Writer, storage_sentence

T = TypeVar("T")
P = ParamSpec("P")

BUSY_MILLISECONDS = 5_000
"""How long a write waits while another process, such as a backup, holds the database."""


class SqliteStore:
    """Implements `lorry.store.interface.Store`. One process at a time: the state's lock sees to that."""

    def __init__(self, path: Path, writer: Writer, reader: apsw.Connection, epoch: int) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader
        self._closed = False
        self._epoch = epoch

    @classmethod
    def open(cls, path: Path, clock_wall: float) -> SqliteStore:
        """Open the database at `path`, or create it. `clock_wall`: now, in Unix seconds.

        Raises VersionError for a state of newer code, InvalidError for one on a network file system and
        StorageFullError when there is no room to open it.
        """
        refuse_network_filesystem(path)
        connection = reader = None
        try:
            connection = apsw.Connection(str(path))
            connection.set_busy_timeout(BUSY_MILLISECONDS)
            epoch = prepare(connection, str(path), clock_wall)
            reader = apsw.Connection(str(path))
            reader.set_busy_timeout(BUSY_MILLISECONDS)
            reader.execute("PRAGMA query_only = ON")
            return cls(path, Writer(connection), reader, epoch)
        except BaseException as error:
            for opened in (connection, reader):
                if opened is not None:
                    opened.close()
            if isinstance(error, apsw.Error):
                raise _typed(error) from error
            raise

    @property
    def epoch(self) -> int:
        return self._epoch

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._reader.close()
            self._writer.close()

    def _write(
        self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[T]:
        return self._writer.submit(lambda db: verb(db, *args, **kwargs))

    def _read(self, verb: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise RuntimeError("the store is closed")
        try:
            return verb(self._reader, *args, **kwargs)
        except apsw.Error as error:
            raise _typed(error) from error

    # Apps and functions

    def add_app(self, app: AppRecord) -> Awaitable[None]:
        return self._write(sqlite_apps.add_app, app)

    def set_app(self, app_id: str, state: AppState, stopped_at: float | None = None) -> Awaitable[None]:
        return self._write(sqlite_apps.set_app, app_id, state, stopped_at)

    def apps(self, *, running_only: bool = False) -> Sequence[AppRecord]:
        return self._read(sqlite_apps.apps, running_only)

    def app(self, app_id: str) -> AppRecord:
        return self._read(sqlite_apps.app, app_id)

    def deployment(self, name: str) -> AppRecord | None:
        return self._read(sqlite_apps.deployment, name)

    def next_version(self, name: str) -> int:
        return self._read(sqlite_apps.next_version, name)

    def add_function(self, app_id: str, tag: str, spec: str) -> Awaitable[int]:
        return self._write(sqlite_apps.add_function, app_id, tag, spec)

    def function(self, number: int) -> FunctionRecord:
        return self._read(sqlite_apps.function, number)

    def functions(self, app_id: str) -> Sequence[FunctionRecord]:
        return self._read(sqlite_apps.functions, app_id)

    # Calls

    def accept_spawn(self, call: CallRecord, chunk: ChunkRecord) -> Awaitable[bool]:
        return self._write(sqlite_calls.accept_spawn, call, chunk)

    def open_call(self, call: CallRecord) -> Awaitable[bool]:
        return self._write(sqlite_calls.open_call, call)

    def accept_chunk(self, chunk: ChunkRecord) -> Awaitable[bool]:
        return self._write(sqlite_calls.accept_chunk, chunk)

    def close_call(self, call: bytes, now: float) -> Awaitable[None]:
        return self._write(sqlite_calls.close_call, call, now)

    def record_results(self, results: Sequence[ResultRecord]) -> Awaitable[Sequence[bool]]:
        return self._write(sqlite_results.record_results, results)

    def acknowledge(self, call: bytes, chunk: int, indices: Selection) -> Awaitable[None]:
        return self._write(sqlite_results.acknowledge, call, chunk, indices)

    def cancel_call(self, call: bytes, now: float) -> Awaitable[bool]:
        return self._write(sqlite_calls.cancel_call, call, now)

    def note_attempts(self, call: bytes, chunk: int, attempts: Mapping[int, int]) -> Awaitable[None]:
        return self._write(sqlite_calls.note_attempts, call, chunk, dict(attempts))

    def call(self, call: bytes) -> CallRecord:
        return self._read(sqlite_calls.call, call)

    def calls(self, app_id: str, *, limit: int = 100) -> Sequence[CallRecord]:
        return self._read(sqlite_calls.calls, app_id, limit)

    def children(self, parent: bytes) -> Sequence[CallRecord]:
        return self._read(sqlite_calls.children, parent)

    def chunk(self, call: bytes, chunk: int) -> ChunkRecord:
        return self._read(sqlite_calls.chunk, call, chunk)

    def unfinished(self) -> Iterator[tuple[CallRecord, int, int, Selection, Mapping[int, int]]]:
        page, mark = self._read(sqlite_calls.unfinished, sqlite_calls.OLDEST)
        while page:
            yield from page
            page, mark = self._read(sqlite_calls.unfinished, mark)

    def results(self, call: bytes, *, after: tuple[int, int] = (-1, -1), limit: int = 256) -> Sequence[ResultRecord]:
        return self._read(sqlite_results.results, call, after, limit)

    def result(self, call: bytes, chunk: int, index: int) -> ResultRecord | None:
        return self._read(sqlite_results.result, call, chunk, index)

    # Containers, usage, decisions

    def put_container(self, container: ContainerRecord) -> Awaitable[None]:
        return self._write(sqlite_containers.put_container, container)

    def container(self, container_id: str) -> ContainerRecord:
        return self._read(sqlite_containers.container, container_id)

    def containers(self, *, app_id: str | None = None, live_only: bool = True) -> Sequence[ContainerRecord]:
        return self._read(sqlite_containers.containers, app_id, live_only)

    def add_usage(self, usage: UsageRecord) -> Awaitable[None]:
        return self._write(sqlite_containers.add_usage, usage)

    def usage(self, *, app_id: str | None = None) -> Sequence[UsageRecord]:
        return self._read(sqlite_containers.usage, app_id)

    def add_decisions(self, decisions: Sequence[DecisionRecord]) -> Awaitable[None]:
        return self._write(sqlite_containers.add_decisions, list(decisions))

    def decisions(self, subject: str, *, limit: int = 50) -> Sequence[DecisionRecord]:
        return self._read(sqlite_containers.decisions, subject, limit)

    # Training runs

    def begin_run(self, run: RunRecord, container_id: str, now: float) -> Awaitable[RunRecord]:
        return self._write(sqlite_runs.begin_run, run, container_id, now)

    def move_head(self, run_id: str, token: int, container_id: str, manifest: str, step: int) -> Awaitable[bool]:
        return self._write(sqlite_runs.move_head, run_id, token, container_id, manifest, step)

    def end_attempt(
        self,
        run_id: str,
        container_id: str,
        now: float,
        ended: AttemptEnd,
        reason: str,
        last_step: int | None,
        seconds: float,
    ) -> Awaitable[bool]:
        return self._write(sqlite_runs.end_attempt, run_id, container_id, now, ended, reason, last_step, seconds)

    def finish_run(self, call: bytes, chunk: int, state: RunState, now: float, error: str) -> Awaitable[None]:
        return self._write(sqlite_runs.finish_run, call, chunk, state, now, error)

    def resume_run(self, run_id: str, app_id: str, function: int, call: bytes, now: float) -> Awaitable[bool]:
        return self._write(sqlite_runs.resume_run, run_id, app_id, function, call, now)

    def run(self, run_id: str) -> RunRecord:
        return self._read(sqlite_runs.run, run_id)

    def run_of(self, call: bytes, chunk: int) -> RunRecord | None:
        return self._read(sqlite_runs.run_of, call, chunk)

    def runs(
        self,
        *,
        app_id: str | None = None,
        prefix: str = "",
        under_way_only: bool = False,
        limit: int | None = None,
    ) -> Sequence[RunRecord]:
        return self._read(sqlite_runs.runs, app_id, prefix, under_way_only, limit)

    def runs_of_call(self, call: bytes) -> Sequence[RunRecord]:
        return self._read(sqlite_runs.runs_of_call, call)

    def attempts(self, run_id: str) -> Sequence[AttemptRecord]:
        return self._read(sqlite_runs.attempts, run_id)

    def open_attempts(self) -> Sequence[AttemptRecord]:
        return self._read(sqlite_runs.open_attempts)

    # Volumes and secrets

    def add_volume(self, volume: VolumeRecord) -> Awaitable[None]:
        return self._write(sqlite_named.add_volume, volume)

    def volume(self, *, name: str | None = None, volume_id: str | None = None) -> VolumeRecord:
        return self._read(sqlite_named.volume, name, volume_id)

    def volumes(self) -> Sequence[VolumeRecord]:
        return self._read(sqlite_named.volumes)

    def delete_volume(self, volume_id: str) -> Awaitable[None]:
        return self._write(sqlite_named.delete_volume, volume_id)

    def put_secret(self, secret: SecretRecord) -> Awaitable[None]:
        return self._write(sqlite_named.put_secret, secret)

    def secret(self, *, name: str | None = None, secret_id: str | None = None) -> SecretRecord:
        return self._read(sqlite_named.secret, name, secret_id)

    def secrets(self) -> Sequence[SecretRecord]:
        return self._read(sqlite_named.secrets)

    def delete_secret(self, secret_id: str) -> Awaitable[None]:
        return self._write(sqlite_named.delete_secret, secret_id)

    # Retention

    async def expire(self, *, calls_before: float, rows_before: float) -> int:
        """As the interface says; it starts when it is awaited, and other writes come between its batches."""
        total = 0
        while gone := await self._write(sqlite_retention.expire_batch, calls_before, rows_before):
            total += gone
        while await self._write(sqlite_retention.shrink):
            pass
        return total

    def sizes(self) -> Mapping[str, int]:
        """`database`: with its write-ahead log."""
        files = (self._path, self._path.with_name(self._path.name + "-wal"))
        return {"database": sum(file.stat().st_size for file in files if file.exists())}


def _typed(error: apsw.Error) -> StorageFullError | InternalError:
    if isinstance(error, apsw.FullError | apsw.IOError | apsw.CantOpenError):
        return StorageFullError(storage_sentence(error))
    return InternalError(f"The state database failed: {type(error).__name__}: {error}")
