"""`MemoryStore`: the same verbs over dictionaries, for tests and for a server that is to remember nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from lorry.errors import AlreadyExistsError, NotFoundError
from lorry.model.records import (
    AppRecord,
    AppState,
    ContainerRecord,
    DecisionRecord,
    FunctionRecord,
    SecretRecord,
    UsageRecord,
    VolumeRecord,
)
from lorry.store.memory_calls import writes
from lorry.store.memory_runs import MemoryRuns


class MemoryStore(MemoryRuns):
    """Implements `lorry.store.interface.Store`. A write is applied when its verb is called."""

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 1
        self._apps: dict[str, AppRecord] = {}
        self._versions: dict[str, int] = {}
        self._functions: dict[int, FunctionRecord] = {}
        self._last_number = 0
        self._containers: dict[str, ContainerRecord] = {}
        self._usage: dict[tuple[str, float], UsageRecord] = {}
        self._decisions: list[DecisionRecord] = []
        self._volumes: dict[str, VolumeRecord] = {}
        self._secrets: dict[str, SecretRecord] = {}

    @property
    def epoch(self) -> int:
        return self._epoch

    def reopen(self) -> None:
        """What a restart of the server does to a state: everything stays and the next epoch begins."""
        self._closed = False
        self._epoch += 1

    # Apps and functions

    @writes
    def add_app(self, app: AppRecord) -> None:
        versions = {(known.name, known.version) for known in self._apps.values() if known.version}
        if app.app_id in self._apps or (app.name, app.version) in versions:
            raise AlreadyExistsError(f"App {app.name!r} version {app.version} ({app.app_id}) exists already.")
        self._apps[app.app_id] = app
        self._versions[app.name] = max(self._versions.get(app.name, 0), app.version)

    @writes
    def set_app(self, app_id: str, state: AppState, stopped_at: float | None = None) -> None:
        if app_id in self._apps:
            self._apps[app_id] = replace(self._apps[app_id], state=state, stopped_at=stopped_at)

    def apps(self, *, running_only: bool = False) -> Sequence[AppRecord]:
        self._check_open()
        hidden = AppState.STOPPED if running_only else None
        return _newest([app for app in self._apps.values() if app.state != hidden])

    def app(self, app_id: str) -> AppRecord:
        self._check_open()
        if app_id not in self._apps:
            raise NotFoundError(f"There is no app {app_id}.")
        return self._apps[app_id]

    def deployment(self, name: str) -> AppRecord | None:
        found = [app for app in self.apps() if app.name == name and app.state == AppState.DEPLOYED]
        return max(found, key=lambda app: app.version, default=None)

    def next_version(self, name: str) -> int:
        self._check_open()
        return self._versions.get(name, 0) + 1

    @writes
    def add_function(self, app_id: str, tag: str, spec: str) -> int:
        if app_id not in self._apps:
            raise NotFoundError(f"There is no app {app_id} to add {tag!r} to.")
        for known in self._functions.values():
            if (known.app_id, known.tag, known.spec) == (app_id, tag, spec):
                return known.number
        self._last_number += 1
        self._functions[self._last_number] = FunctionRecord(number=self._last_number, app_id=app_id, tag=tag, spec=spec)
        return self._last_number

    def function(self, number: int) -> FunctionRecord:
        self._check_open()
        if number not in self._functions:
            raise NotFoundError(f"There is no function number {number}.")
        return self._functions[number]

    def functions(self, app_id: str) -> Sequence[FunctionRecord]:
        self._check_open()
        return [function for function in self._functions.values() if function.app_id == app_id]

    # Containers, usage, decisions

    @writes
    def put_container(self, container: ContainerRecord) -> None:
        self._containers[container.container_id] = container

    def container(self, container_id: str) -> ContainerRecord:
        self._check_open()
        if container_id not in self._containers:
            raise NotFoundError(f"There is no container {container_id}.")
        return self._containers[container_id]

    def containers(self, *, app_id: str | None = None, live_only: bool = True) -> Sequence[ContainerRecord]:
        self._check_open()
        return _newest(
            [
                container
                for container in self._containers.values()
                if app_id in (None, container.app_id) and not (live_only and container.stopped_at is not None)
            ]
        )

    @writes
    def add_usage(self, usage: UsageRecord) -> None:
        self._usage[usage.container_id, usage.started_at] = usage

    def usage(self, *, app_id: str | None = None) -> Sequence[UsageRecord]:
        self._check_open()
        found = [usage for usage in self._usage.values() if app_id in (None, usage.app_id)]
        return sorted(found, key=lambda usage: (usage.started_at, usage.container_id))

    @writes
    def add_decisions(self, decisions: Sequence[DecisionRecord]) -> None:
        self._decisions.extend(decisions)

    def decisions(self, subject: str, *, limit: int = 50) -> Sequence[DecisionRecord]:
        self._check_open()
        found = [decision for decision in reversed(self._decisions) if decision.subject == subject]
        return sorted(found, key=lambda decision: -decision.at)[:limit]

    # Volumes and secrets

    @writes
    def add_volume(self, volume: VolumeRecord) -> None:
        taken = {known.name for known in self._volumes.values()} - {None}
        if volume.volume_id in self._volumes or volume.name in taken:
            raise AlreadyExistsError(f"Volume {volume.name or volume.volume_id!r} exists already.")
        self._volumes[volume.volume_id] = volume

    def volume(self, *, name: str | None = None, volume_id: str | None = None) -> VolumeRecord:
        self._check_open()
        found = _by_either(self._volumes, name, volume_id)
        if found is None:
            raise NotFoundError(f"There is no volume {name or volume_id!r}.")
        return found

    def volumes(self) -> Sequence[VolumeRecord]:
        self._check_open()
        return sorted(self._volumes.values(), key=lambda volume: volume.created_at)

    @writes
    def delete_volume(self, volume_id: str) -> None:
        self._volumes.pop(volume_id, None)

    @writes
    def put_secret(self, secret: SecretRecord) -> None:
        replaced = None if secret.name is None else _by_either(self._secrets, secret.name, None)
        if replaced is not None:
            del self._secrets[replaced.secret_id]
        self._secrets[secret.secret_id] = secret

    def secret(self, *, name: str | None = None, secret_id: str | None = None) -> SecretRecord:
        self._check_open()
        found = _by_either(self._secrets, name, secret_id)
        if found is None:
            raise NotFoundError(f"There is no secret {name or secret_id!r}.")
        return found

    def secrets(self) -> Sequence[SecretRecord]:
        self._check_open()
        named = {secret.name: secret for secret in self._secrets.values() if secret.name is not None}
        return [named[name] for name in sorted(named)]

    @writes
    def delete_secret(self, secret_id: str) -> None:
        self._secrets.pop(secret_id, None)

    # Retention

    def expire(self, *, calls_before: float, rows_before: float) -> Awaitable[int]:
        return self._expire(calls_before, rows_before)

    @writes
    def _expire(self, calls_before: float, rows_before: float) -> int:
        gone = self._expire_calls(calls_before)
        for container in list(self._containers.values()):
            if container.stopped_at is not None and container.stopped_at < rows_before:
                del self._containers[container.container_id]
                gone += 1
        kept = [decision for decision in self._decisions if decision.at >= rows_before]
        gone += len(self._decisions) - len(kept)
        self._decisions = kept
        return gone + self._expire_runs(rows_before) + self._expire_apps(rows_before)

    def _expire_apps(self, before: float) -> int:
        used = {call.app_id for call in self._all_calls()} | {run.app_id for run in self.runs()}
        old = {
            app.app_id
            for app in self._apps.values()
            if app.state == AppState.STOPPED
            and (app.created_at if app.stopped_at is None else app.stopped_at) < before
            and app.app_id not in used
        }
        self._apps = {app_id: app for app_id, app in self._apps.items() if app_id not in old}
        self._functions = {n: known for n, known in self._functions.items() if known.app_id not in old}
        return len(old)

    def sizes(self) -> Mapping[str, int]:
        return {"database": self._payload_bytes()}


R = TypeVar("R", AppRecord, ContainerRecord)
N = TypeVar("N", VolumeRecord, SecretRecord)


def _newest(found: list[R]) -> list[R]:
    """By creation, the last inserted first among equals."""
    return sorted(found, key=lambda record: record.created_at)[::-1]


def _by_either(table: dict[str, N], name: str | None, key: str | None) -> N | None:
    if key is not None:
        return table.get(key)
    return next((record for record in table.values() if name is not None and record.name == name), None)
