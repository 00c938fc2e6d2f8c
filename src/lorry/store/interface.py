"""What the server remembers, as domain verbs. Two stores pass one suite: `sqlite` (default) and `memory` (tests).

A *write* verb returns an awaitable that resolves after the commit is on disk: what it acknowledged
survives any crash. Writes are applied in the order in which the verbs were called, and commits are shared
(group commit), so that a caller should start many and await them together. A *read* verb is a plain call,
answers from committed rows, and sees every write whose awaitable has resolved.

Errors: `StorageFullError` when the disk is full (nothing of that write is kept), `NotFoundError` for an
unknown id where a verb says so. A write that breaks an invariant (a second result for an input, a chunk
number that exists with another size) is refused by the schema itself, and the verb says how it reports it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Protocol

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


class Store(Protocol):
    """Owner: the worker's loop. All verbs are called on the loop's thread."""

    @property
    def epoch(self) -> int:
        """Grows by one each time the state is opened; the high half of every lease token."""
        ...

    def close(self) -> None:
        """Finish the writes under way and release the files. Further verbs raise RuntimeError."""
        ...

    # Apps and functions

    def add_app(self, app: AppRecord) -> Awaitable[None]: ...

    def set_app(self, app_id: str, state: AppState, stopped_at: float | None = None) -> Awaitable[None]: ...

    def apps(self, *, running_only: bool = False) -> Sequence[AppRecord]:
        """Newest first. `running_only` leaves out the stopped ones."""
        ...

    def app(self, app_id: str) -> AppRecord:
        """NotFoundError if unknown."""
        ...

    def deployment(self, name: str) -> AppRecord | None:
        """The newest app of that name in state DEPLOYED."""
        ...

    def next_version(self, name: str) -> int:
        """1 + the highest version that a deployment of that name ever had."""
        ...

    def add_function(self, app_id: str, tag: str, spec: str) -> Awaitable[int]:
        """The number of (app, tag, spec): the same triple always gets the same number; numbers start at 1."""
        ...

    def function(self, number: int) -> FunctionRecord:
        """NotFoundError if unknown."""
        ...

    def functions(self, app_id: str) -> Sequence[FunctionRecord]: ...

    # Calls. "Finished" inputs have a result row or had one that was acknowledged.

    def accept_spawn(self, call: CallRecord, chunk: ChunkRecord) -> Awaitable[bool]:
        """Journal a one-chunk call. False if the call is known already (a client that asked twice)."""
        ...

    def open_call(self, call: CallRecord) -> Awaitable[bool]:
        """Journal a call whose chunks will follow. False if it is known already."""
        ...

    def accept_chunk(self, chunk: ChunkRecord) -> Awaitable[bool]:
        """Journal one chunk and add its inputs to the call's count. False if (call, chunk) is known already;
        NotFoundError if the call is not."""
        ...

    def close_call(self, call: bytes, now: float) -> Awaitable[None]:
        """No more inputs will come. A call that is closed and whose inputs are all finished becomes DONE."""
        ...

    def record_results(self, results: Sequence[ResultRecord]) -> Awaitable[Sequence[bool]]:
        """Keep each result unless one of its inputs has one already or the call is gone (then False for it,
        and nothing of it is kept). Marks the inputs finished, counts them in the call, closes it when all are."""
        ...

    def acknowledge(self, call: bytes, chunk: int, indices: Selection) -> Awaitable[None]:
        """The client has these results: delete their rows. They stay finished, and a chunk whose inputs are all
        acknowledged is deleted with its payload. Unknown ones are ignored. A result row that covers more
        than `indices` is deleted when all of it is acknowledged; clients acknowledge whole rows."""
        ...

    def cancel_call(self, call: bytes, now: float) -> Awaitable[bool]:
        """Mark CANCELLED. False if it was not open or closed any more. Its chunks' payloads are deleted;
        results that exist stay."""
        ...

    def note_attempts(self, call: bytes, chunk: int, attempts: Mapping[int, int]) -> Awaitable[None]:
        """Remember how many attempts inputs of a chunk have used up, so that a restart does not give them more."""
        ...

    def call(self, call: bytes) -> CallRecord:
        """NotFoundError if unknown or expired."""
        ...

    def calls(self, app_id: str, *, limit: int = 100) -> Sequence[CallRecord]:
        """Newest first."""
        ...

    def children(self, parent: bytes) -> Sequence[CallRecord]: ...

    def chunk(self, call: bytes, chunk: int) -> ChunkRecord:
        """NotFoundError if unknown or its payload is gone."""
        ...

    def unfinished(self) -> Iterator[tuple[CallRecord, int, int, Selection, Mapping[int, int]]]:
        """For recovery: (call, chunk, inputs, finished indices, attempts) of each chunk with unfinished inputs
        of calls in state OPEN or CLOSED, oldest call first, without loading payloads."""
        ...

    def results(self, call: bytes, *, after: tuple[int, int] = (-1, -1), limit: int = 256) -> Sequence[ResultRecord]:
        """Results ordered by (chunk, first index), those after the given pair."""
        ...

    def result(self, call: bytes, chunk: int, index: int) -> ResultRecord | None:
        """The row that covers this input, if it is there."""
        ...

    # Containers, usage, decisions

    def put_container(self, container: ContainerRecord) -> Awaitable[None]:
        """Insert or replace by id."""
        ...

    def container(self, container_id: str) -> ContainerRecord:
        """NotFoundError when there is none."""
        ...

    def containers(self, *, app_id: str | None = None, live_only: bool = True) -> Sequence[ContainerRecord]:
        """Newest first. Live: `stopped_at` is None."""
        ...

    def add_usage(self, usage: UsageRecord) -> Awaitable[None]:
        """One row for each (container, started_at); a later one with the same key replaces it."""
        ...

    def usage(self, *, app_id: str | None = None) -> Sequence[UsageRecord]: ...

    def add_decisions(self, decisions: Sequence[DecisionRecord]) -> Awaitable[None]: ...

    def decisions(self, subject: str, *, limit: int = 50) -> Sequence[DecisionRecord]:
        """Newest first."""
        ...

    # Training runs. A run is one input of a resumable function, and outlives its attempts.

    def begin_run(self, run: RunRecord, container_id: str, now: float) -> Awaitable[RunRecord]:
        """A new attempt at the run of this input, which is made as given if there is none: RUNNING, with a token larger
        than any before, and an attempt of this container. Attempts that were open end as KILLED. The same container
        asking again gets a new token for the attempt that it has."""
        ...

    def move_head(self, run_id: str, token: int, container_id: str, manifest: str, step: int) -> Awaitable[bool]:
        """A checkpoint is the newest, and its input has used up no attempts. False, and nothing changes, unless the
        token is the run's newest and was given to this container: decided and done by one statement."""
        ...

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
        """A RUNNING run is WAITING then. A reason becomes the run's `error`, unless that has ended. False if this
        container has no open attempt at it."""
        ...

    def finish_run(self, call: bytes, chunk: int, state: RunState, now: float, error: str) -> Awaitable[None]:
        """The input has its outcome. Nothing happens to a run that is over, or to an input that is none."""
        ...

    def resume_run(self, run_id: str, app_id: str, function: int, call: bytes, now: float) -> Awaitable[bool]:
        """It waits again, as chunk 0 of another call. False if it is not FAILED or CANCELLED (any more)."""
        ...

    def run(self, run_id: str) -> RunRecord:
        """NotFoundError if unknown."""
        ...

    def run_of(self, call: bytes, chunk: int) -> RunRecord | None: ...

    def runs(
        self,
        *,
        app_id: str | None = None,
        prefix: str = "",
        under_way_only: bool = False,
        limit: int | None = None,
    ) -> Sequence[RunRecord]:
        """Newest first. `prefix`: of their ids."""
        ...

    def runs_of_call(self, call: bytes) -> Sequence[RunRecord]:
        """By chunk."""
        ...

    def attempts(self, run_id: str) -> Sequence[AttemptRecord]:
        """By token."""
        ...

    def open_attempts(self) -> Sequence[AttemptRecord]:
        """Of all runs: those that have not ended."""
        ...

    # Volumes and secrets. Names are unique among named ones.

    def add_volume(self, volume: VolumeRecord) -> Awaitable[None]:
        """AlreadyExistsError if the name is taken."""
        ...

    def volume(self, *, name: str | None = None, volume_id: str | None = None) -> VolumeRecord:
        """NotFoundError if unknown."""
        ...

    def volumes(self) -> Sequence[VolumeRecord]: ...

    def delete_volume(self, volume_id: str) -> Awaitable[None]: ...

    def put_secret(self, secret: SecretRecord) -> Awaitable[None]:
        """Insert, or replace the one of the same name (its id changes with its content)."""
        ...

    def secret(self, *, name: str | None = None, secret_id: str | None = None) -> SecretRecord:
        """NotFoundError if unknown."""
        ...

    def secrets(self) -> Sequence[SecretRecord]:
        """The named ones, by name."""
        ...

    def delete_secret(self, secret_id: str) -> Awaitable[None]: ...

    # Retention

    def expire(self, *, calls_before: float, rows_before: float) -> Awaitable[int]:
        """Delete calls that were finished before `calls_before` with their chunks and results, and finished runs,
        stopped containers, decisions and stopped apps without calls and runs older than `rows_before`. In small
        batches; returns how many rows went, attempts not counted. Usage rows stay."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Bytes by kind for `lorry df`: at least `database`."""
        ...
