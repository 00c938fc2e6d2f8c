"""The API's methods for apps, functions and calls. Parameters and replies are JSON; see docs/reference."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from lorry import errors
from lorry.clock import Clock
from lorry.ids import call_name
from lorry.model import selection as sel
from lorry.model.function import FunctionSpec
from lorry.model.records import AppState, CallKind, CallRecord, CallState
from lorry.scheduler.dispatch import Work
from lorry.server.apps import Apps
from lorry.server.frontend import NO_REPLY, Method, Session
from lorry.server.journal import Journal, new_call
from lorry.server.logs import LogStore
from lorry.server.parameters import fitted
from lorry.server.switch import Switch
from lorry.store.interface import Store
from lorry.wire.codec import from_json, to_json, to_plain

INNER_METHODS = frozenset(
    {"function_lookup", "bind", "map_open", "map_attach", "map_close", "call_result", "call_cancel"}
    | {"call_info", "call_graph"}
    | {"run_begin", "run_commit"}
    | {"volume_create", "volume_lookup", "volume_listdir", "volume_read", "volume_remove", "volume_sync"}
)
"""What code inside a container may ask for: calls, the run that it works on, and the objects that its function
declares."""


class CallApi:
    def __init__(
        self,
        clock: Clock,
        store: Store,
        apps: Apps,
        switch: Switch,
        journal: Journal,
        logs: LogStore,
        refuse: Callable[[FunctionSpec], None],
    ) -> None:
        """`refuse`: raises for what this machine's sandbox cannot give."""
        self._clock = clock
        self._refuse = refuse
        self._store = store
        self._apps = apps
        self._switch = switch
        self._journal = journal
        self._logs = logs

    def methods(self) -> dict[str, Method]:
        names = (
            "app_create app_functions app_ready app_detach app_stop app_list app_lookup app_logs function_lookup bind "
            "map_open map_attach map_close call_result call_cancel call_info call_graph"
        )
        return {name: getattr(self, name) for name in names.split()}

    # Apps

    async def app_create(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{name, state} → {app_id, version}. A deployment (`state`: deployed) is one from `app_ready` on; until then it
        ends with its client."""
        deploys = params["state"] == AppState.DEPLOYED.value
        record = await self._apps.create(params["name"], session.pid, deploys=deploys)
        return {"app_id": record.app_id, "version": record.version}

    async def app_functions(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{app_id, specs: [JSON text]} → {numbers: {tag: number}}"""
        return {"numbers": await self._apps.add_functions(params["app_id"], params["specs"])}

    async def app_ready(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{app_id}: a deployment is complete; it takes the place of the one before."""
        await self._apps.deploy(params["app_id"])
        return {}

    async def app_detach(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        await self._apps.detach(params["app_id"])
        return {}

    async def app_stop(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{app_id, reason} → {} when its containers are gone and its log is complete."""
        await asyncio.shield(self._apps.stop(params["app_id"], params.get("reason", "a client asked for it")))
        return {}

    async def app_list(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        records = self._store.apps(running_only=not params.get("all", False))
        return {"apps": [self._apps.describe(record) for record in records[: params.get("limit", 100)]]}

    async def app_lookup(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{name or id} → the app: a running one of that id or name, else the newest stopped one."""
        wanted = params["app"]
        records = [record for record in self._store.apps() if wanted in (record.app_id, record.name)]
        records.sort(key=lambda record: record.state is AppState.STOPPED)  # stable: the newest first within each
        for record in records:
            return self._apps.describe(record)
        raise errors.NotFoundError(f"no app {wanted!r}; `lorry app list --all` shows those that ran here")

    async def app_logs(self, session: Session, params: dict[str, Any], number: int) -> Any:
        """{app_id, tail, follow, call?, container?}: EVENTs {"lines": […]}, at last {"end": …}; reply {} at once."""
        app_id, call, container = params["app_id"], params.get("call"), params.get("container")
        follow = params.get("follow") and app_id in self._apps.alive()
        if not params.get("only_new"):
            rows = self._logs.read(
                app_id,
                lambda row: (not call or row["k"] == call) and (not container or row["c"] == container),
                params.get("tail", 0),
            )
            for start in range(0, len(rows), 200):
                session.peer.event(number, {"lines": rows[start : start + 200]})
        if follow:
            self._logs.follow(app_id, session.peer, number)
        else:
            session.peer.event(number, {"end": {}})
        return {}

    # Functions

    async def function_lookup(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{app_id or app_name, tag} → {number, spec, app_id}. Inside a container only the owner's apps."""
        app_id = params.get("app_id") or self._deployed(params["app_name"])
        for record in self._store.functions(app_id):
            spec = from_json(FunctionSpec, record.spec)
            if record.tag == params["tag"] and spec.parameters is None and not spec.is_sandbox:
                self._apps.record(app_id)
                return {"number": record.number, "spec": record.spec, "app_id": app_id}
        raise errors.NotFoundError(f"app {params.get('app_name') or app_id} has no function {params['tag']!r}")

    def _deployed(self, name: str) -> str:
        found = self._store.deployment(name)
        if found is None:
            raise errors.NotFoundError(f"no deployed app {name!r}; deploy it with `lorry deploy`")
        return found.app_id

    async def bind(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{number, changes: {field: value}} → {number}: the same function with parameters or other options."""
        base = self._store.function(params["number"])
        app = self._apps.record(base.app_id)
        plain = to_plain(from_json(FunctionSpec, base.spec))
        unknown = params["changes"].keys() - plain.keys()
        if unknown:
            raise errors.InvalidError(f"a function has no option {sorted(unknown)[0]!r}")
        spec = fitted(FunctionSpec, {**plain, **params["changes"]})
        _check_bind(session, base.app_id, params["changes"].keys(), spec)
        self._refuse(spec)
        return {"number": await self._apps.add_function(app, spec, to_json(spec))}

    # Calls

    async def map_open(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{call, number, keep, subscribe}: chunks of this call will follow on this connection."""
        call = params["call"]
        self._switch.spec(params["number"])
        function = self._store.function(params["number"])
        parent = session.container.current_call if session.container else None
        record = new_call(
            call, function.app_id, function.number, CallKind.MAP, self._clock.wall(), parent, params["keep"]
        )
        await self._journal.open_call(record)
        self._switch.open_calls[call] = record
        self._switch.openers[call] = session.peer
        if params.get("subscribe"):
            self._journal.subscribe(call, session.peer)
        return {}

    async def map_attach(self, session: Session, params: dict[str, Any], number: int) -> Any:
        """{call}: after a lost connection; results that were not acknowledged come again."""
        call = params["call"]
        record = self._store.call(call)
        if record.state is CallState.CANCELLED:
            raise errors.ExecutionError("the call was cancelled")
        self._switch.open_calls[call] = record
        self._switch.openers[call] = session.peer
        session.peer.reply(number, {"state": record.state.value})
        self._journal.subscribe(call, session.peer)  # after the reply: nobody reads results before it
        return NO_REPLY

    async def map_close(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{call}: no more chunks will come."""
        call = params["call"]
        await self._switch.arrived(call)
        self._switch.open_calls.pop(call, None)
        self._switch.openers.pop(call, None)
        await self._journal.close_call(call)
        return {}

    async def call_result(self, session: Session, params: dict[str, Any], number: int) -> Any:
        """{call, chunk, index, wait}: a RESULT frame of this number, or {"ready": false} when the time is over."""
        call = params["call"]
        sent = await self._journal.fetch(
            session.peer, number, call, params.get("chunk", 0), params.get("index", 0), params.get("wait")
        )
        return NO_REPLY if sent else {"ready": False}

    async def call_cancel(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{call} → {cancelled}: pending inputs are dropped, running ones are interrupted."""
        call = params["call"]
        record = self._store.call(call)
        cancelled = await self._journal.cancel(call)
        self._switch.open_calls.pop(call, None)
        self._switch.openers.pop(call, None)
        self._switch.cancel(call, record.function, "the call was cancelled")
        return {"cancelled": cancelled}

    async def call_info(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{call} → the call; `resumable`: its inputs are runs, each a chunk of its own."""
        record = self._store.call(params["call"])
        spec = from_json(FunctionSpec, self._store.function(record.function).spec)
        return {**_describe_call(record), "resumable": spec.resumable is not None}

    async def call_graph(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{call} → the call and, nested, those it made."""
        return self._graph(self._store.call(params["call"]), 0)

    def _graph(self, record: CallRecord, depth: int) -> dict[str, Any]:
        children = self._store.children(record.call) if depth < 32 else ()
        return {**_describe_call(record), "children": [self._graph(child, depth + 1) for child in children]}

    # After a restart of the worker

    def recover(self) -> int:
        """Submit every journaled input without a result. Those that a container still has are held back."""
        count = 0
        for call, chunk, inputs, done, attempts in self._store.unfinished():
            if call.app_id not in self._apps.alive():
                continue
            self._switch.open_calls[call.call] = call
            self._switch.submit(_recovered(call, chunk, inputs, done, dict(attempts)), None)
            count += inputs
        return count


def _check_bind(session: Session, app_id: str, changes: Collection[str], spec: FunctionSpec) -> None:
    """Code in a container must not give itself, through another function's variant, what its own function does not
    declare (promise 5): code, image, other volumes and secrets, or another app's environment."""
    if session.container is None:
        return
    own = session.container.spec
    allowed = {"parameters", "resources", "scaling", "retries", "timeout", "startup_timeout"}
    if app_id == session.container.app_id:
        allowed.add("env")
    if set(spec.secret_ids) <= set(own.secret_ids):
        allowed.add("secret_ids")
    if set(spec.volumes) <= set(own.volumes):
        allowed.add("volumes")
    for name in changes:
        if name not in allowed:
            raise errors.InvalidError(f"code in a container may not change {name!r} of a function beyond its own")


def _recovered(call: CallRecord, chunk: int, inputs: int, done: Any, attempts: dict[int, int]) -> Work:
    left = sel.subtract(sel.full(inputs), done)
    return Work(
        call=call.call,
        chunk=chunk,
        target=call.function,
        indices=left,
        count=sel.count(left),
        total=inputs,
        journaled=True,
        batch=call.kind is CallKind.MAP,
        again=True,
        attempts=attempts,
    )


def _describe_call(record: CallRecord) -> dict[str, Any]:
    plain = dataclasses.asdict(record)
    plain["call"] = call_name(record.call)
    plain["parent"] = call_name(record.parent) if record.parent else None
    plain["kind"], plain["state"] = record.kind.value, record.state.value
    return plain
