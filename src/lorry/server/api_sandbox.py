"""The API's methods for sandboxes, and for programs in any running container."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from typing import Any

from lorry import errors
from lorry.clock import Clock
from lorry.model.function import FunctionSpec
from lorry.model.records import AppRecord, AppState, ContainerRecord
from lorry.scheduler import evict
from lorry.scheduler.inventory import Inventory
from lorry.scheduler.place import Never, Placed, place
from lorry.server.apps import Apps
from lorry.server.container import Container
from lorry.server.exec import Execs
from lorry.server.exec_result import code_of
from lorry.server.fleet import Fleet
from lorry.server.frontend import Method, Session
from lorry.server.logs import LogStore
from lorry.server.parameters import fitted
from lorry.server.provision import Provision
from lorry.server.scaler import Scaler
from lorry.store.interface import Store
from lorry.timeouts import SCALE_INTERVAL

LARGEST_TERMINAL = 65_535
_ID = re.compile(r"sb-[0-9a-f]{32}")
COMMIT, COMMIT_POLL = 10.0, 0.01
"""Seconds that the row of a container that has just ended may take to be written."""


class SandboxApi:
    def __init__(
        self,
        clock: Clock,
        store: Store,
        apps: Apps,
        fleet: Fleet,
        scaler: Scaler,
        provision: Provision,
        logs: LogStore,
        inventory: Inventory,
        execs: Execs,
    ) -> None:
        self._clock = clock
        self._store = store
        self._apps = apps
        self._fleet = fleet
        self._scaler = scaler
        self._provision = provision
        self._logs = logs
        self._inventory = inventory
        self._execs = execs

    def methods(self) -> dict[str, Method]:
        names = (
            "sandbox_create sandbox_wait sandbox_terminate sandbox_info sandbox_list sandbox_tag sandbox_log "
            "exec_start exec_read exec_write exec_wait exec_kill exec_resize"
        )
        return {name: getattr(self, name) for name in names.split()}

    # Sandboxes

    async def sandbox_create(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{sandbox_id, app_id or app_name, spec: JSON text} → {sandbox_id, app_id, isolated} once its program runs.
        Under a name that no running app has, an app is made that lives as long as its sandboxes."""
        sandbox_id = params["sandbox_id"]
        if not _ID.fullmatch(sandbox_id):
            raise errors.InvalidError(f"{sandbox_id!r} is no id of a sandbox")
        known = self._fleet.containers.get(sandbox_id)
        if known is not None:  # asked for again, by a client that had lost its connection
            await known.up.wait()
            return self._created(known)
        try:
            over = self._store.container(sandbox_id)
        except errors.NotFoundError:
            pass
        else:  # likewise
            return self._created(over)
        spec = fitted(FunctionSpec, params["spec"])
        if not spec.is_sandbox or not spec.command:
            raise errors.InvalidError("a sandbox has a command")
        self._provision.refuse(spec)
        while True:
            app, made = await self._app_of(session, params)
            try:
                container = await self._start(session, app, spec, params["spec"], sandbox_id)
            except BaseException:
                if made:
                    self._apps.stop(app.app_id, "its sandbox could not be started")
                elif not params.get("app_id") and app.app_id not in self._apps.alive():
                    continue  # its last sandbox ended just now, and the app with it
                raise
            if made:
                await self._apps.detach(app.app_id)
            return self._created(container)

    def _created(self, found: Container | ContainerRecord) -> dict[str, Any]:
        """Raises why it could not be started."""
        if not (found.process if isinstance(found, Container) else found.pid):
            name, _, message = found.reason.partition(": ")
            raise errors.BY_NAME.get(name, errors.ResourceError)(message or found.reason)
        return {"sandbox_id": found.container_id, "app_id": found.app_id, "isolated": self._provision.isolated}

    async def _app_of(self, session: Session, params: dict[str, Any]) -> tuple[AppRecord, bool]:
        """The app, and whether it was made for this."""
        if params.get("app_id"):
            return self._apps.record(params["app_id"]), False
        name = params["app_name"]
        for record in self._apps.alive().values():
            if record.name == name and record.state in (AppState.DEPLOYED, AppState.DETACHED):
                return record, False
        return await self._apps.create(name, session.pid, deploys=False), True

    async def _start(
        self, session: Session, app: AppRecord, spec: FunctionSpec, text: str, sandbox_id: str
    ) -> Container:
        number = await self._store.add_function(app.app_id, spec.tag, text)
        placed = await self._place(session, spec)
        self._apps.record(app.app_id)  # it may have been stopped meanwhile
        self._fleet.start(app.app_id, number, spec, placed, placed.sentence, sandbox_id)
        container = self._fleet.containers[sandbox_id]
        container.labels = dict(spec.tags)
        await container.up.wait()
        self._created(container)
        return container

    async def _place(self, session: Session, spec: FunctionSpec) -> Placed:
        """Waits for room, and takes that of idle containers."""
        while True:
            reservations = self._fleet.reservations()
            placed = place(self._inventory, reservations, spec.resources)
            if isinstance(placed, Placed):
                return placed
            if isinstance(placed, Never):
                raise errors.CapacityError(placed.sentence)
            for container_id in evict.choose(self._inventory, reservations, spec.resources, self._scaler.idle()):
                self._fleet.stop(container_id, "its place is needed by a sandbox")
            await asyncio.sleep(SCALE_INTERVAL)
            if session.peer.closed:
                raise errors.ExecutionError("its client went away while it waited for room")

    def _sandbox(self, sandbox_id: str) -> Container | ContainerRecord:
        container = self._fleet.containers.get(sandbox_id)
        if container is not None and container.spec.is_sandbox:
            return container
        return self._row(sandbox_id)

    def _row(self, sandbox_id: str) -> ContainerRecord:
        if sandbox_id.startswith("sb-"):
            with contextlib.suppress(errors.NotFoundError):
                return self._store.container(sandbox_id)
        raise errors.NotFoundError(f"no sandbox {sandbox_id!r}; see `lorry container list --all`")

    async def sandbox_wait(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{sandbox_id, wait: seconds or null} → {code, reason}; code null when it still runs."""
        found = self._sandbox(params["sandbox_id"])
        if isinstance(found, Container):
            try:
                async with asyncio.timeout(params.get("wait")):
                    await found.gone.wait()
            except TimeoutError:
                return {"code": None, "reason": ""}
            return {"code": found.code, "reason": found.reason}
        async with asyncio.timeout(COMMIT):
            while found.stopped_at is None:
                await asyncio.sleep(COMMIT_POLL)
                found = self._row(params["sandbox_id"])
        return {"code": code_of(found), "reason": found.reason}

    async def sandbox_terminate(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{sandbox_id} → {} when nothing of it runs any more."""
        found = self._sandbox(params["sandbox_id"])
        if isinstance(found, Container):
            self._fleet.stop(found.container_id, "it was terminated")
            await found.gone.wait()
        return {}

    async def sandbox_info(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{sandbox_id} → {sandbox_id, app_id, tags, running}"""
        return _describe(self._sandbox(params["sandbox_id"]))

    async def sandbox_list(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{app_id?, tags} → {sandboxes: […]}: those that run, with all these tags, newest first."""
        wanted = params.get("tags", {}).items()
        found = [
            _describe(container)
            for container in self._fleet.containers.values()
            if container.spec.is_sandbox
            and params.get("app_id") in (None, container.app_id)
            and wanted <= container.labels.items()
        ]
        return {"sandboxes": found[::-1]}

    async def sandbox_tag(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{sandbox_id, tags}: in place of those that it has."""
        found = self._sandbox(params["sandbox_id"])
        if not isinstance(found, Container):
            raise errors.ExecutionError(f"{params['sandbox_id']} has ended: its tags cannot be changed any more")
        found.labels = params["tags"]
        await self._store.put_container(found.record())
        return {}

    async def sandbox_log(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{sandbox_id, stream: 1 or 2, file, offset: as the last answer gave them} → {lines, file, offset, end: whether
        nothing more is there by now, lost: whether what came before these is not kept}: what its own program has
        printed."""
        found = self._sandbox(params["sandbox_id"])
        place = params.get("file", 0), params.get("offset", 0)
        lines, (file, offset), end = self._logs.page(found.app_id, found.container_id, params["stream"], place)
        since = found.started_wall if isinstance(found, Container) else found.created_at
        lost = self._logs.has_lost(found.app_id, place, since)
        return {"lines": lines, "file": file, "offset": offset, "end": end, "lost": lost}

    # Programs in containers

    async def exec_start(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{container_id, argv or file: [verb, path, option], env, secrets: ids, workdir, terminal: [rows, columns] or
        null, timeout} → {exec_id} once it is executed."""
        container = self._fleet.containers.get(params["container_id"])
        if container is None:
            raise self._not_running(params["container_id"])
        argv, file, size = params.get("argv") or (), params.get("file"), params.get("terminal")
        if file is not None and len(file) != 3:
            raise errors.InvalidError("a program is a list of words, the first of which names it")
        found = await self._execs.start(
            container,
            session.pid,
            argv=tuple(argv),
            file=None if file is None else (file[0], file[1], file[2]),
            env={**params.get("env", {}), **self._provision.values_of(params.get("secrets", []))},
            workdir=params.get("workdir"),
            terminal=None if size is None else _size(size),
            timeout=params.get("timeout"),
        )
        return {"exec_id": found.exec_id}

    def _not_running(self, container_id: str) -> errors.NotFoundError:
        with contextlib.suppress(errors.NotFoundError):
            row = self._store.container(container_id)
            return errors.NotFoundError(f"{container_id} has ended: {row.reason or 'nobody knows why'}")
        return errors.NotFoundError(f"no running container {container_id!r}; see `lorry container list`")

    async def exec_read(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{exec_id, offsets: {"stdout": bytes that you have, "stderr": …}} → {name: [base64, whether it is the end]},
        as soon as there is something."""
        ready = await self._execs.read(self._execs.find(params["exec_id"]), params["offsets"])
        return {name: [base64.b64encode(data).decode(), end] for name, (data, end) in ready.items()}

    async def exec_write(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{exec_id, data: base64, end} → {} when the program has taken it. `end` closes its stdin."""
        await self._execs.write(self._execs.find(params["exec_id"]), params["data"], params.get("end", False))
        return {}

    async def exec_wait(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{exec_id, wait: seconds or null} → {code}: null when it still runs."""
        return {"code": await self._execs.wait(self._execs.find(params["exec_id"]), params.get("wait"))}

    async def exec_kill(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{exec_id, signal}: to the program and its process group."""
        number = params.get("signal", 9)
        if not 0 < number < 65:
            raise errors.InvalidError(f"there is no signal {number}")
        self._execs.kill(self._execs.find(params["exec_id"]), number)
        return {}

    async def exec_resize(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{exec_id, terminal: [rows, columns]}"""
        self._execs.resize(self._execs.find(params["exec_id"]), *_size(params["terminal"]))
        return {}


def _size(given: Any) -> tuple[int, int]:
    rows, columns = (min(max(1, int(number)), LARGEST_TERMINAL) for number in given)
    return rows, columns


def _describe(found: Container | ContainerRecord) -> dict[str, Any]:
    if isinstance(found, Container):
        return {
            "sandbox_id": found.container_id,
            "app_id": found.app_id,
            "tags": found.labels,
            "running": found.alive,
        }
    tags = json.loads(found.resources).get("labels", {})
    return {"sandbox_id": found.container_id, "app_id": found.app_id, "tags": tags, "running": False}
