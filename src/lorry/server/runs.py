"""Training runs under way: which container works on which, who may commit, and what becomes of them.

A run is one input of a resumable function. Its row is made when an attempt first asks for it (`begin`), and each
attempt gets a token larger than any before: only the newest can move the run's head (`commit`). The outcome of the
input is the truth about its end; the row follows it, and one that a crash left behind is set right at the start
(`recover`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Collection
from dataclasses import dataclass, field
from typing import Any

from lorry import errors, faults
from lorry.clock import Clock
from lorry.ids import new_id
from lorry.lifecycle.container import ContainerState
from lorry.model.function import FunctionSpec, ResumePolicy
from lorry.model.records import CallState, ResultRecord, Status
from lorry.model.run import AttemptEnd, RunRecord, RunState
from lorry.scheduler.dispatch import Key
from lorry.scheduler.work import Work
from lorry.server.container import Container
from lorry.server.fleet import Fleet
from lorry.server.journal import FULL_PAUSE, Journal, Outcome
from lorry.server.parcels import Parcel, Spool
from lorry.server.run_checkpoints import check_commit
from lorry.server.run_files import INNER, KeptInput, Progress, RunFiles, folder_of
from lorry.server.run_report import failure_text, kept, span
from lorry.server.switch import LAST_INPUT, Switch
from lorry.storage.atomic import full_disk_named
from lorry.store.interface import Store
from lorry.wire.codec import from_json

ADOPTION_LOOK = 0.05
"""Seconds between looks at whether a container of an earlier worker has said what it works on."""
CHECKS = 2
"""Manifests that are checked at once: parsing a large one holds the interpreter."""
MOST_FAILURE = 8 << 20
"""Bytes of a failure that are looked at for its text."""
_ENDS = {
    Status.OK: AttemptEnd.FINISHED,
    Status.CONTINUE: AttemptEnd.CONTINUE,
    Status.CANCELLED: AttemptEnd.CANCELLED,
    Status.TIMEOUT: AttemptEnd.TIMEOUT,
}
_STATES = {Status.OK: RunState.DONE, Status.CANCELLED: RunState.CANCELLED}


@dataclass(slots=True, eq=False)
class Attempt:
    """One container's work on a run."""

    run_id: str
    key: Key
    token: int
    container_id: str
    folder: str
    began: float
    """Monotonic; when it began, or when this worker took it over."""
    progress: Progress | None = None
    committed: int | None = None
    """The newest step that it has saved."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its end is on disk."""

    @property
    def last_step(self) -> int | None:
        steps = [self.committed, self.progress.step if self.progress and self.progress.token == self.token else None]
        return max((step for step in steps if step is not None), default=None)


@dataclass(slots=True, eq=False)
class UnderWay:
    """A run that has no outcome."""

    call: bytes
    chunk: int
    target: int
    deadline: float | None
    """Monotonic; worked out once, when the run is begun or found: a clock that is set meanwhile moves nothing."""
    policy: ResumePolicy
    overdue: bool = False
    """Its deadline is over, and its attempt was asked to save: it ends with that."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its end is on disk."""


class Runs:
    def __init__(
        self, clock: Clock, store: Store, switch: Switch, fleet: Fleet, spool: Spool, files: RunFiles, isolated: bool
    ) -> None:
        """`isolated`: containers see the folders of runs at a path of their own."""
        self._clock = clock
        self._store = store
        self._switch = switch
        self._fleet = fleet
        self._spool = spool
        self._isolated = isolated
        self._checks = asyncio.Semaphore(CHECKS)
        self._tasks: set[asyncio.Task[None]] = set()
        self.files = files
        self.attempts: dict[str, Attempt] = {}
        """By container."""
        self.under_way: dict[Key, UnderWay] = {}

    def follow(self, journal: Journal) -> None:
        """Hear of every attempt's and every input's end."""
        self._switch.attempt_over = self._attempt_over
        self._fleet.adopted = self._adopted
        journal.recorded = self._recorded

    # An attempt begins

    async def begin(self, container: Container) -> dict[str, Any]:
        """An attempt at the run that this container was given. Its token is on disk before it is told."""
        policy = container.spec.resumable
        if policy is None:
            raise errors.InvalidError(f"{container.spec.tag} is no resumable function: @app.function(resumable=True)")
        work = await self._work_of(container)
        known = self._store.run_of(work.call, work.chunk)
        if known and known.tries >= policy.max_attempts and container.container_id not in self.attempts:
            raise self._too_many(known, policy, work)
        # From here to the write without a break: an end that comes meanwhile is written after it.
        wall = self._clock.wall()
        new = self._new_run(container, work, wall)
        writing = self._store.begin_run(new, container.container_id, wall)
        self._note(known or new, policy)
        attempt = self._watch(known or new, container, 0)
        run = await writing
        attempt.run_id, attempt.token = run.run_id, run.token
        await asyncio.to_thread(self._prepare, run, work)
        if faults.armed:
            faults.point("worker.run_begun")
        head = {"manifest": run.head_manifest, "step": run.head_step, "token": run.head_token}
        return {
            "run_id": run.run_id,
            "folder": f"{INNER}/{run.run_id}" if self._isolated else str(self.files.path(run.folder)),
            "token": run.token,
            "head": head if run.head_manifest is not None else None,
            "attempt": run.attempts,
            "interruptions": run.interruptions,
            "seconds": run.seconds,
        }

    async def _work_of(self, container: Container) -> Work:
        """What it was given: nothing that it says of that counts."""
        while container.state is ContainerState.LOST_CONTACT:  # bounded: it is killed if it does not come back
            await asyncio.sleep(ADOPTION_LOOK)
        leases = [one for one in self._switch.dispatcher.leases.values() if one.container == container.container_id]
        works = [lease.work for lease in leases if lease.work.indices]
        if not works:
            raise errors.CallCancelledError("this container's input was cancelled, or is over: it has no run any more")
        return works[0]

    def _new_run(self, container: Container, work: Work, wall: float) -> RunRecord:
        name, tag, run_id = self._store.app(container.app_id).name, container.spec.tag, new_id("ru")
        return RunRecord(
            run_id=run_id,
            app_id=container.app_id,
            app_name=name,
            tag=tag,
            function=work.target,
            call=work.call,
            chunk=work.chunk,
            state=RunState.RUNNING,
            created_at=wall,
            since=wall,
            folder=folder_of(name, tag, run_id),
        )

    def _too_many(self, run: RunRecord, policy: ResumePolicy, work: Work) -> errors.ResourceError:
        last = f"The last one: {run.error}" if run.error else "Each ended at the end of its slice"
        text = f"the run has had all its attempts (max_attempts={policy.max_attempts}). {last}. {kept(run)}"
        self._switch.cancel(work.call, work.target, text, status=Status.LOST, chunk=work.chunk)
        return errors.ResourceError(text)

    def _prepare(self, run: RunRecord, work: Work) -> None:
        """Its folder, and in it the input, which the journal does not keep for as long."""
        with full_disk_named(self.files.path(run.folder)), contextlib.suppress(errors.NotFoundError):
            self.files.make(run.folder)
            path, body = self._spool.located(self._store.chunk(work.call, work.chunk).payload)
            kept = KeptInput(batch=work.batch, reference=body if path else None)
            self.files.keep_input(run.folder, kept, path or body)

    def _note(self, run: RunRecord, policy: ResumePolicy) -> None:
        if (run.call, run.chunk) in self.under_way:
            return
        deadline = None
        if policy.deadline is not None:
            deadline = self._clock.monotonic() + run.since + policy.deadline - self._clock.wall()
        self.under_way[run.call, run.chunk] = UnderWay(run.call, run.chunk, run.function, deadline, policy)

    def _watch(self, run: RunRecord, container: Container, token: int) -> Attempt:
        attempt = self.attempts.get(container.container_id)
        if attempt is None:  # else it has asked again, for the answer was lost
            key, now = (run.call, run.chunk), self._clock.monotonic()
            attempt = Attempt(run.run_id, key, token, container.container_id, run.folder, now)
            self.attempts[container.container_id] = attempt
            self._spawn(self._await_death(attempt, container))
        return attempt

    # An attempt commits

    async def commit(self, container: Container, run_id: str, token: int, manifest: str, step: int) -> None:
        """CorruptCheckpointError if the checkpoint is not whole, StaleAttemptError if a newer attempt has begun; then
        the head is as it was. It is on disk when this returns."""
        attempt = self.attempts.get(container.container_id)
        if attempt is None or (attempt.run_id, attempt.token) != (run_id, token):
            raise errors.StaleAttemptError(
                f"attempt {token} at {run_id} cannot save any more: it is not this container's"
            )
        async with self._checks:
            await asyncio.to_thread(check_commit, self.files, attempt.folder, run_id, token, manifest, step)
        if faults.armed:
            faults.point("worker.before_head_swap")
        if not await self._store.move_head(run_id, token, container.container_id, manifest, step):
            raise errors.StaleAttemptError(f"attempt {token} at {run_id} cannot save any more: a newer one has begun")
        if faults.armed:
            faults.point("worker.after_head_swap")
        attempt.committed = step
        self._switch.committed(container.container_id, *attempt.key)

    # Ends

    def _attempt_over(self, container: str, status: Status, payload: Parcel) -> None:
        """Its container has answered."""
        attempt = self.attempts.get(container)
        if attempt is not None:
            ended = _ENDS.get(status, AttemptEnd.ERROR)
            said = failure_text(_head_of(payload)) if ended not in (AttemptEnd.FINISHED, AttemptEnd.CANCELLED) else ""
            if ended is AttemptEnd.CONTINUE:
                said = self._why_stopped(container, said)
            self._end(attempt, ended, said)

    def _why_stopped(self, container: str, said: str) -> str:
        """Before its slice was over; empty if it was. `said`: its YieldSlice."""
        found = self._fleet.containers.get(container)
        if found is not None and found.reason not in ("", LAST_INPUT):
            return found.reason
        return "its process was asked to end (SIGTERM)" if said.endswith(": drain") else ""

    async def _await_death(self, attempt: Attempt, container: Container) -> None:
        await container.gone.wait()
        if self.attempts.get(attempt.container_id) is attempt:
            self._end(attempt, AttemptEnd.KILLED, container.reason or "its container died")

    def _end(self, attempt: Attempt, ended: AttemptEnd, reason: str) -> None:
        """Submitted at once: before the next attempt's beginning."""
        del self.attempts[attempt.container_id]
        live = self.under_way.get(attempt.key)
        overdue = live is not None and live.overdue
        if overdue and ended is AttemptEnd.CONTINUE:
            ended = AttemptEnd.CANCELLED  # there is no next slice
        wall, seconds = self._clock.wall(), self._clock.monotonic() - attempt.began
        writing = self._store.end_attempt(
            attempt.run_id, attempt.container_id, wall, ended, reason, attempt.last_step, seconds
        )
        self._spawn(_told(writing, attempt.over))
        if live is not None and overdue:
            self.end_overdue(live, attempt.last_step)

    def end_overdue(self, live: UnderWay, last_step: int | None = None) -> None:
        """Its deadline is over, and nobody works on it any more. `last_step`: of its last attempt."""
        run = self._store.run_of(live.call, live.chunk)
        assert run is not None
        assert live.policy.deadline is not None
        step = max(run.head_step or 0, last_step or 0)
        text = f"the run's deadline of {span(live.policy.deadline)} is over at step {step:,}. {kept(run)}"
        self.end(live, Status.TIMEOUT, text)

    def _recorded(self, outcome: Outcome) -> Awaitable[None] | None:
        """An input has its outcome, on disk. If it is a run, what is to be awaited before anybody is told."""
        live = self.under_way.get((outcome.call, outcome.chunk))
        if live is None:
            return None
        state = _STATES.get(outcome.status, RunState.FAILED)
        text = "" if state is RunState.DONE else failure_text(_head_of(outcome.parcel))
        return self._finish(live, state, self._clock.wall(), text)

    async def _finish(self, live: UnderWay, *end: Any) -> None:
        """However long it takes: a run that is under way in the books can neither be cancelled nor resumed."""
        while not await _quietly(self._store.finish_run(live.call, live.chunk, *end)):
            await asyncio.sleep(FULL_PAUSE)
        del self.under_way[live.call, live.chunk]
        live.over.set()

    def end(self, live: UnderWay, status: Status, text: str) -> None:
        """Its input ends so, now. An attempt is asked to save, and killed after the function's grace."""
        self._switch.cancel(live.call, live.target, text, status=status, chunk=live.chunk)

    def attempt_at(self, run_id: str) -> Attempt | None:
        return next((attempt for attempt in self.attempts.values() if attempt.run_id == run_id), None)

    def resumed(self, run: RunRecord) -> None:
        """It waits again."""
        spec = from_json(FunctionSpec, self._store.function(run.function).spec)
        if spec.resumable is not None:
            self._note(run, spec.resumable)

    # After a restart of the worker

    def recover(self, alive: Collection[str]) -> None:
        """`alive`: the apps that are. Once containers and inputs are recovered."""
        finished = {
            run.run_id for run in self._store.runs(under_way_only=True) if self._settle(run, run.app_id in alive)
        }
        for attempt in self._store.open_attempts():
            container = self._fleet.containers.get(attempt.container_id)
            run = self._store.run(attempt.run_id)
            if container is not None and run.run_id not in finished:
                watched = self._watch(run, container, attempt.token)
                watched.committed = run.head_step if run.head_token == attempt.token else None
                continue
            ended, reason = AttemptEnd.KILLED, "its container ended while the server was away"
            if run.run_id in finished:
                ended, reason = AttemptEnd.FINISHED, ""
            # The machine may have been off for days: they are no training.
            at = max(attempt.started_at, min(self._clock.wall(), self.files.said_at(run.folder)))
            end = (attempt.container_id, at, ended, reason, run.head_step, at - attempt.started_at)
            self._spawn(_quietly(self._store.end_attempt(run.run_id, *end)))

    def _adopted(self, container: str) -> None:
        """What it has saved before it came back was worth its attempt."""
        attempt = self.attempts.get(container)
        if attempt is not None and attempt.committed is not None:
            self._switch.committed(container, *attempt.key)

    def _settle(self, run: RunRecord, alive: bool) -> bool:
        """Whether it is done."""
        state, text = self._outcome_of(run, alive)
        if state is None:
            self.resumed(run)
        else:
            self._spawn(_quietly(self._store.finish_run(run.call, run.chunk, state, self._clock.wall(), text)))
        return state is RunState.DONE

    def _outcome_of(self, run: RunRecord, alive: bool) -> tuple[RunState | None, str]:
        """What its call says; None: it goes on."""
        try:
            call = self._store.call(run.call)
        except errors.NotFoundError:
            return RunState.FAILED, run.error or "its call is not kept any more"
        result = self._store.result(run.call, run.chunk, 0)
        if result is not None:
            state = _STATES.get(result.status, RunState.FAILED)
            return state, "" if state is RunState.DONE else self._text_of(result)
        if call.state is CallState.CANCELLED or not alive:
            return RunState.CANCELLED, "its app was stopped" if call.state is not CallState.CANCELLED else ""
        if call.state is CallState.DONE:  # a map's client has its result, and so it is gone
            return RunState.DONE, ""
        return None, ""

    def _text_of(self, result: ResultRecord) -> str:
        path, body = self._spool.located(result.payload[1:])
        with contextlib.suppress(OSError):
            return failure_text(path.read_bytes()[:MOST_FAILURE] if path else body)
        return ""

    # Small things

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _head_of(payload: Parcel) -> bytes:
    if payload.segment is None:
        return payload.body
    return os.pread(payload.segment.fd, min(MOST_FAILURE, payload.size()), 0)


async def _quietly(write: Awaitable[Any]) -> bool:
    """False: a full disk or a locked database has refused it. The next start sets right what is not tried again."""
    with contextlib.suppress(errors.ResourceError):
        await write
        return True
    return False


async def _told(write: Awaitable[Any], over: asyncio.Event) -> None:
    try:
        await _quietly(write)
    finally:
        over.set()
