"""The API's methods for training runs: two for code in containers, the others for people."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Any

from lorry import errors
from lorry.clock import Clock
from lorry.ids import CALL_BYTES, call_bytes
from lorry.model.function import FunctionSpec
from lorry.model.records import AppRecord, CallKind, CallRecord, FunctionRecord, Status
from lorry.model.run import RESUMABLE, RunRecord
from lorry.scheduler.dispatch import Work
from lorry.server import run_report
from lorry.server.apps import Apps
from lorry.server.container import Container
from lorry.server.frontend import Method, Session
from lorry.server.journal import Journal, new_call
from lorry.server.parcels import Broker, Parcel
from lorry.server.provision import Provision
from lorry.server.run_checkpoints import described, verify
from lorry.server.runs import Runs
from lorry.server.switch import Switch
from lorry.store.interface import Store
from lorry.wire.codec import from_json

MOST_RUNS = 100
POINTS = 500


class RunApi:
    def __init__(
        self,
        clock: Clock,
        store: Store,
        apps: Apps,
        switch: Switch,
        journal: Journal,
        broker: Broker,
        provision: Provision,
        runs: Runs,
    ) -> None:
        self._clock = clock
        self._store = store
        self._apps = apps
        self._switch = switch
        self._journal = journal
        self._broker = broker
        self._provision = provision
        self._runs = runs
        self._resuming: set[str] = set()
        self._verifying = asyncio.Semaphore(1)
        """It reads as fast as the disk can, in one of few threads."""

    def methods(self) -> dict[str, Method]:
        names = "run_begin run_commit run_list run_show run_resume run_cancel run_verify"
        return {name: getattr(self, name) for name in names.split()}

    # From code in containers

    async def run_begin(self, session: Session, _params: dict[str, Any], _number: int) -> Any:
        """{} → {run_id, folder, token, head: {manifest, step, token} or null, attempt, interruptions, seconds}: an
        attempt at the run that this container was given, with a token larger than any before."""
        return await self._runs.begin(_container(session))

    async def run_commit(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{run_id, token, manifest, step} → {} when the head is moved, on disk. May be asked twice."""
        container = _container(session)
        await self._runs.commit(container, params["run_id"], params["token"], params["manifest"], params["step"])
        return {}

    # From clients

    async def run_list(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{all, limit, app_id?} → {runs}: newest first; those under way, or with `all` those that ended too."""
        found = self._store.runs(
            app_id=params.get("app_id"),
            under_way_only=not params.get("all", False),
            limit=params.get("limit", MOST_RUNS),
        )
        return {"runs": await self._infos(found)}

    async def run_show(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{run, points} → the run, with {attempt_rows, checkpoints, metrics}: its rows, thinned to so many points."""
        run = self._found(params["run"])
        (newest,) = await self._infos([run])
        history = await asyncio.to_thread(self._history, run, params.get("points", POINTS))
        attempts = run_report.attempt_rows(self._store.attempts(run.run_id))
        return {**newest, "attempt_rows": attempts, **history}

    def _history(self, run: RunRecord, points: int) -> dict[str, Any]:
        """Training notes a checkpoint at the step after it, and may be killed before: the newest is here all the
        same."""
        files, head = self._runs.files, run.head_manifest
        found = run_report.history(files.tail(run.folder, "metrics.jsonl", run_report.MOST_METRICS), points)
        noted = found["checkpoints"]
        if head is not None and all(row["manifest"] != head for row in noted):
            noted.append(described(files, run.folder, head, run.head_step or 0))
        return found

    async def _infos(self, runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
        attempted = {attempt.run_id for attempt in self._runs.attempts.values()}
        return await asyncio.to_thread(lambda: [self._info(run, run.run_id in attempted) for run in runs])

    def _info(self, run: RunRecord, attempted: bool) -> dict[str, Any]:
        files = self._runs.files
        tail = files.tail(run.folder, "metrics.jsonl", run_report.TAIL)
        return run_report.info(run, files.path(run.folder), files.progress(run.folder), tail, attempted=attempted)

    def _found(self, wanted: str) -> RunRecord:
        """By id, by the beginning of one, or by its call."""
        if wanted.startswith("fc-"):
            try:
                found = self._store.runs_of_call(call_bytes(wanted))
            except ValueError as wrong:
                raise errors.InvalidError(str(wrong)) from None
        else:
            found = self._store.runs(prefix=wanted, limit=8) if wanted else []
        if not found:
            raise errors.NotFoundError(f"no run {wanted!r}; `lorry runs list --all` shows those that were here")
        if len(found) > 1:
            names = ", ".join(run.run_id for run in found[:8])
            raise errors.InvalidError(f"{wanted!r} can be any of several runs: {names}")
        return found[0]

    async def run_cancel(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{run} → the run, when it has saved and stopped. Its checkpoints stay."""
        run = self._found(params["run"])
        live = self._runs.under_way.get((run.call, run.chunk))
        if live is None:
            raise errors.InvalidError(f"{run.run_id} is {run.state.value} already")
        attempt = self._runs.attempt_at(run.run_id)
        self._runs.end(live, Status.CANCELLED, f"{run.run_id} was cancelled")
        await live.over.wait()
        if attempt is not None:
            await attempt.over.wait()
        (newest,) = await self._infos([self._store.run(run.run_id)])
        return newest

    async def run_verify(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{run} → {checkpoints: [{manifest, step, bytes, damaged: [file…]}]}: all of them read, the newest first."""
        run = self._found(params["run"])
        async with self._verifying:
            found = await asyncio.to_thread(verify, self._runs.files, run.folder, lambda: not session.peer.closed)
        return {"checkpoints": found}

    # Resume

    async def run_resume(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{run} → {run_id, call, app_id}: a run that failed or was cancelled goes on where its newest checkpoint is, in
        a detached app of its own."""
        run = self._found(params["run"])
        attempt = self._runs.attempt_at(run.run_id)
        if attempt is not None and run.state in RESUMABLE:  # it was asked to end, and saves
            await attempt.over.wait()
            run = self._store.run(run.run_id)
        if run.state not in RESUMABLE:
            raise errors.InvalidError(f"{run.run_id} is {run.state.value}: only one that has failed or was cancelled")
        if run.run_id in self._resuming:
            raise errors.InvalidError(f"{run.run_id} is being resumed already")
        self._resuming.add(run.run_id)
        try:
            record = await asyncio.shield(self._resume(run))
        finally:
            self._resuming.discard(run.run_id)
        return {"run_id": run.run_id, "call": f"fc-{record.call.hex()}", "app_id": record.app_id}

    async def _resume(self, run: RunRecord) -> CallRecord:
        functions = self._store.functions(run.app_id)
        for function in functions:
            self._provision.refuse(from_json(FunctionSpec, function.spec))
        kept, payload = await asyncio.to_thread(self._runs.files.kept_input, run.folder)
        parcel = Parcel(payload) if isinstance(payload, bytes) else self._as_parcel(payload, kept.reference)
        self._broker.hold(parcel, parcel)
        try:
            app = await self._apps.create_detached(run.app_name)
            try:
                number = await self._add_functions(app, functions, run.function)
                return await self._submit(run, app, number, parcel, batch=kept.batch)
            finally:
                self._apps.end_when_done(app.app_id)
        finally:
            self._broker.let_go(parcel, parcel)

    def _as_parcel(self, descriptor: int, reference: bytes | None) -> Parcel:
        assert reference is not None
        return self._broker.from_descriptor(descriptor, reference)

    async def _add_functions(self, app: AppRecord, functions: Sequence[FunctionRecord], wanted: int) -> int:
        """All of the app that it had, for it may call them; the number of its own."""
        number = 0
        for function in functions:
            again = await self._apps.add_function(app, from_json(FunctionSpec, function.spec), function.spec)
            number = again if function.number == wanted else number
        return number

    async def _submit(self, run: RunRecord, app: AppRecord, number: int, parcel: Parcel, *, batch: bool) -> CallRecord:
        """The run's row first: an input whose run is not known would begin a new one. A crash before the call is there,
        at once with its input, leaves a run without a call, which is failed, and can be resumed."""
        call, now = os.urandom(CALL_BYTES), self._clock.wall()
        record = new_call(call, app.app_id, number, CallKind.MAP if batch else CallKind.SPAWN, now, None, True)
        if not await self._store.resume_run(run.run_id, app.app_id, number, call, now):
            raise errors.InvalidError(f"{run.run_id} was resumed by somebody else")
        try:
            await self._journal.accept_spawn(record, parcel)
        except errors.ResourceError:  # no room on the disk
            with contextlib.suppress(errors.ResourceError):  # else the next start of the server does it
                await self._store.finish_run(call, 0, run.state, now, run.error)
            raise
        self._runs.resumed(self._store.run(run.run_id))
        self._switch.submit(Work(call=call, target=number, journaled=True, batch=batch), None)
        return record


def _container(session: Session) -> Container:
    if session.container is None:
        raise errors.InvalidError("this is for code in a container: lorry.run() in a resumable function")
    return session.container
