"""Apps: made by a client, alive as long as it, or detached, or deployed; stopped once, completely."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from typing import Any

from lorry.clock import Clock
from lorry.errors import InvalidError, NotFoundError, ResourceError
from lorry.ids import new_id
from lorry.lifecycle.deployment import AppEvent, app_machine
from lorry.lifecycle.machine import Machine
from lorry.model.function import FunctionSpec
from lorry.model.records import AppRecord, AppState, CallState
from lorry.server.container import Container
from lorry.server.fleet import Fleet
from lorry.server.journal import Journal
from lorry.server.logs import LogStore
from lorry.server.machine import process_started
from lorry.server.parameters import fitted
from lorry.server.scaler import Scaler
from lorry.server.switch import Switch
from lorry.store.interface import Store
from lorry.timeouts import LOG_DRAIN
from lorry.wire.codec import from_json

STOP_WITHIN = 5.0
"""Seconds that containers of a stopped app have for their exit hooks: a person waits at the terminal."""


RETIRE_POLL = 0.25
"""Seconds between two looks at whether a detached or replaced app is through."""


class Apps:
    def __init__(
        self,
        clock: Clock,
        store: Store,
        switch: Switch,
        journal: Journal,
        fleet: Fleet,
        scaler: Scaler,
        logs: LogStore,
    ) -> None:
        self._clock = clock
        self._store = store
        self._switch = switch
        self._journal = journal
        self._fleet = fleet
        self._scaler = scaler
        self._logs = logs
        self._loop = asyncio.get_running_loop()
        self._watched: dict[str, int] = {}
        """pidfd of the client of each ephemeral app."""
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._alive: dict[str, AppRecord] = {}
        self._machines: dict[str, Machine[AppState, AppEvent]] = {}
        """Of each app in `_alive`, and written with it in `_begin` and `_move` only."""
        self._retiring: set[asyncio.Task[None]] = set()

    def alive(self) -> dict[str, AppRecord]:
        return self._alive

    def record(self, app_id: str) -> AppRecord:
        """NotFoundError if it is unknown or stopped."""
        record = self._alive.get(app_id)
        if record is None:
            stopped = self._store.app(app_id)
            raise NotFoundError(f"app {stopped.name!r} ({app_id}) is stopped")
        return record

    def _begin(self, record: AppRecord) -> None:
        self._alive[record.app_id] = record
        self._machines[record.app_id] = app_machine(record.app_id, record.state)

    def _move(self, app_id: str, event: AppEvent) -> AppRecord:
        """The one way in which the state of an app changes; NotFoundError if it is over already."""
        record = self.record(app_id)
        state = self._machines[app_id].fire(event, self._clock.monotonic())
        record = self._alive[app_id] = dataclasses.replace(record, state=state)
        if state is AppState.STOPPED:
            del self._alive[app_id], self._machines[app_id]
        return record

    def _check_request(self, app_id: str, event: AppEvent) -> None:
        """A client may ask for anything at any time: what its app cannot do is its error, not the server's."""
        record = self.record(app_id)
        if not self._machines[app_id].allows(event):
            raise InvalidError(f"app {record.name!r} ({app_id}) is {record.state.value}: it cannot {event.value}")

    async def create(self, name: str, client_pid: int, *, deploys: bool) -> AppRecord:
        """A new app. It ends with its client process until it is detached, or complete as a deployment."""
        record = AppRecord(
            app_id=new_id("ap"),
            name=name,
            state=AppState.EPHEMERAL,
            created_at=self._clock.wall(),
            client_pid=client_pid or None,
            client_started=process_started(client_pid) if client_pid else None,
            version=self._store.next_version(name) if deploys else 0,
        )
        await self._store.add_app(record)
        self._begin(record)
        self._watch_client(record)
        return record

    async def create_detached(self, name: str) -> AppRecord:
        """A new app without a client. Tell `end_when_done` once it has something to do."""
        record = AppRecord(app_id=new_id("ap"), name=name, state=AppState.DETACHED, created_at=self._clock.wall())
        await self._store.add_app(record)
        self._begin(record)
        return record

    def end_when_done(self, app_id: str) -> None:
        """It stops by itself after its last call."""
        self._retire(app_id, "its calls are done")

    async def add_functions(self, app_id: str, specs: list[str]) -> dict[str, int]:
        """Their numbers by tag."""
        app = self.record(app_id)
        numbers: dict[str, int] = {}
        for text in specs:
            spec = fitted(FunctionSpec, text)
            numbers[spec.tag] = await self.add_function(app, spec, text)
        return numbers

    async def add_function(self, app: AppRecord, spec: FunctionSpec, text: str) -> int:
        """One function or bound variant of it; the same spec always gets the same number."""
        number = await self._store.add_function(app.app_id, spec.tag, text)
        self._scaler.apps[number] = (app.app_id, True)
        self._switch.spec(number)
        if spec.scaling.min_containers:
            self._scaler.changed(number)
        return number

    def spec_of(self, number: int) -> FunctionSpec:
        """For the switch: the spec of a function whose app is alive."""
        record = self._store.function(number)
        self.record(record.app_id)
        return from_json(FunctionSpec, record.spec)

    # The client's life

    def _watch_client(self, record: AppRecord) -> None:
        """A pidfd tells of the client's death, whatever became of its connections."""
        pid, started = record.client_pid, record.client_started
        if pid is None or process_started(pid) != started:
            self._client_left(record.app_id)
            return
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            self._client_left(record.app_id)
            return
        self._watched[record.app_id] = handle
        self._loop.add_reader(handle, self._client_left, record.app_id)

    def _client_left(self, app_id: str) -> None:
        self._unwatch(app_id)
        self.stop(app_id, "its client ended", AppEvent.CLIENT_LEFT)

    def _unwatch(self, app_id: str) -> None:
        handle = self._watched.pop(app_id, None)
        if handle is not None:
            self._loop.remove_reader(handle)
            os.close(handle)

    async def detach(self, app_id: str) -> None:
        """From now on it outlives its client."""
        self._check_request(app_id, AppEvent.DETACH)
        await self._settle_down(app_id, AppEvent.DETACH, AppState.DETACHED)
        self.end_when_done(app_id)

    async def deploy(self, app_id: str) -> None:
        """All its functions are here: it outlives its client, and older versions of its name end once their inputs
        have."""
        self._check_request(app_id, AppEvent.DEPLOY)
        if not self.record(app_id).version:
            raise InvalidError(f"app {app_id} was not made as a deployment: it has no version")
        await self._settle_down(app_id, AppEvent.DEPLOY, AppState.DEPLOYED)
        self._replace_older(app_id)
        for function in self._store.functions(app_id):
            self._fleet.warm(app_id, function.number)

    async def _settle_down(self, app_id: str, event: AppEvent, state: AppState) -> None:
        """On disk first: who was told that it stays must find it after a restart."""
        await self._store.set_app(app_id, state)
        self._move(app_id, event)
        self._unwatch(app_id)

    def _replace_older(self, app_id: str) -> None:
        new = self.record(app_id)
        for record in list(self._alive.values()):
            if record.name == new.name and record.state is AppState.DEPLOYED and record.version < new.version:
                self._move(record.app_id, AppEvent.REPLACED)
                self._retire(record.app_id, f"version {new.version} took its place")

    def _retire(self, app_id: str, reason: str) -> None:
        """Stop it as soon as nothing of it waits or runs."""
        task = self._loop.create_task(self._stop_when_done(app_id, reason))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _stop_when_done(self, app_id: str, reason: str) -> None:
        if app_id in self._alive:
            with contextlib.suppress(ResourceError):  # no room on the disk: a restart does it again
                await self._store.set_app(app_id, AppState.DETACHED)
        while app_id in self._alive:
            if not self._busy(app_id):
                await self.stop(app_id, reason, AppEvent.CALLS_DONE)
                return
            await asyncio.sleep(RETIRE_POLL)

    def _busy(self, app_id: str) -> bool:
        if any(c.app_id == app_id and c.spec.is_sandbox for c in self._fleet.containers.values()):
            return True
        numbers = {function.number for function in self._store.functions(app_id)}
        if any(self._switch.dispatcher.calls_of(number) for number in numbers):
            return True
        return any(call.state in (CallState.OPEN, CallState.CLOSED) for call in self._store.calls(app_id, limit=1000))

    # The end

    def stop(self, app_id: str, reason: str, event: AppEvent = AppEvent.STOP) -> asyncio.Task[None]:
        """Cancel its calls, stop its containers, close its log. Idempotent; await the task to see it done."""
        task = self._stopping.get(app_id)
        if task is None:
            task = self._stopping[app_id] = self._loop.create_task(self._stop(app_id, reason, event))
            task.add_done_callback(lambda _done: self._stopping.pop(app_id, None))
        return task

    async def _stop(self, app_id: str, reason: str, event: AppEvent) -> None:
        if app_id not in self._alive or self._move(app_id, event).state is not AppState.STOPPED:
            return
        self._unwatch(app_id)
        with contextlib.suppress(ResourceError):  # then it stops all the same; a restart stops it again
            await self._store.set_app(app_id, AppState.STOPPED, self._clock.wall())
        numbers = [function.number for function in self._store.functions(app_id)]
        calls = self._store.calls(app_id, limit=1_000_000)
        unfinished = [call.call for call in calls if call.state in (CallState.OPEN, CallState.CLOSED)]
        with contextlib.suppress(ResourceError):
            await asyncio.gather(*map(self._journal.cancel, unfinished))
        for number in numbers:
            self._scaler.apps.pop(number, None)
            self._switch.stop_function(number, f"the app was stopped: {reason}")
        containers = [c for c in self._fleet.containers.values() if c.app_id == app_id]
        for container in containers:
            self._fleet.stop(container.container_id, f"the app was stopped: {reason}", within=STOP_WITHIN)
        await self._gone(containers)
        self._logs.close_app(app_id, {"reason": reason})
        self._forget(numbers)

    async def _gone(self, containers: list[Container]) -> None:
        """Wait for the containers' ends: they are certain, because each stop ends in a kill."""
        graces = [container.spec.resumable.grace for container in containers if container.spec.resumable is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max([STOP_WITHIN, *graces]) + 2 * LOG_DRAIN):
                await asyncio.gather(*(container.gone.wait() for container in containers))

    def _forget(self, numbers: list[int]) -> None:
        """Memory must not grow with the apps that were here. What still has a container is left alone."""
        left = {container.target for container in self._fleet.containers.values()}
        for number in numbers:
            if number not in left:
                self._switch.forget_function(number)
                self._fleet.forget_function(number)
                self._scaler.forget_function(number)

    # After a restart of the worker

    def recover(self) -> None:
        """Apps that were alive. Those of dead clients are stopped once everything is up."""
        for record in self._store.apps(running_only=True):
            self._begin(record)
            for function in self._store.functions(record.app_id):
                if from_json(FunctionSpec, function.spec).is_sandbox:
                    continue
                self._scaler.apps[function.number] = (record.app_id, True)
                self._switch.spec(function.number)

    def recover_clients(self) -> None:
        for record in list(self._alive.values()):
            if record.state is AppState.EPHEMERAL:
                self._watch_client(record)
            elif record.state is AppState.DETACHED:
                self.end_when_done(record.app_id)
            else:
                self._replace_older(record.app_id)  # one may have been on its way out

    def describe(self, record: AppRecord) -> dict[str, Any]:
        """For listings."""
        containers = [c for c in self._fleet.containers.values() if c.app_id == record.app_id]
        return {
            "app_id": record.app_id,
            "name": record.name,
            "state": record.state.value,
            "version": record.version,
            "created_at": record.created_at,
            "stopped_at": record.stopped_at,
            "containers": len(containers),
        }
