"""The worker: builds everything once, runs until told to stop, and can be killed at any instruction.

Started by the keeper with the listening sockets in LORRY_LISTEN. Ends with 0 (idle or told to stop; the keeper
ends too) or 78 (it cannot work as configured; a restart would not help).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import uvloop

from lorry import errors
from lorry.clock import SystemClock
from lorry.config import Settings, resolve
from lorry.images.builder import ImageBuilder
from lorry.images.runner import DirectRunner
from lorry.model.function import FunctionSpec
from lorry.model.records import AppState, CallState, ContainerRecord
from lorry.sandbox import detect
from lorry.sandbox.cgroups import remove_blocking
from lorry.sandbox.interface import Feature
from lorry.sandbox.records import read_exit, read_group
from lorry.server.adopted import noted
from lorry.server.api import INNER_METHODS, CallApi
from lorry.server.api_admin import AdminApi
from lorry.server.api_images import ImageApi
from lorry.server.api_objects import ObjectApi
from lorry.server.api_runs import RunApi
from lorry.server.api_sandbox import SandboxApi
from lorry.server.apps import Apps
from lorry.server.build_sandbox import SandboxedBuilds
from lorry.server.exec import Execs
from lorry.server.exec_result import with_code
from lorry.server.fleet import Fleet
from lorry.server.folders import remove_folder
from lorry.server.frontend import Frontend, Method
from lorry.server.journal import Journal
from lorry.server.logs import LogStore
from lorry.server.machine import LoadMeter, take_inventory
from lorry.server.parcels import Broker, Spool
from lorry.server.peers import accept_on
from lorry.server.provision import Provision, provision_owner
from lorry.server.retention import Retention
from lorry.server.run_watch import RunWatch
from lorry.server.runs import Runs
from lorry.server.scaler import Scaler
from lorry.server.services import Services
from lorry.server.switch import Switch
from lorry.server.templates import Templates
from lorry.server.watchdog import Watchdog
from lorry.store.sqlite import SqliteStore
from lorry.timeouts import RETENTION_INTERVAL, SCALE_INTERVAL, TICK, USAGE_INTERVAL
from lorry.wire.codec import from_json

EXIT_CONFIGURATION = 78
SWITCH_INTERVAL = 0.0002
"""Seconds. With CPython's 5 ms the store's writer thread lifts the loop's p99 from 0.04 to 1 ms (DESIGN.md, 6)."""
PR_SET_CHILD_SUBREAPER = 36


class Worker:
    """Everything the server is made of. The only place where concrete classes meet."""

    def __init__(self, settings: Settings, listeners: list[socket.socket]) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._hand_over = False
        self._clock = clock = SystemClock()
        state = settings.state_dir
        self.store = store = SqliteStore.open(state / "lorry.db", clock.wall())
        self._inventory = inventory = take_inventory(settings.gpu_fixture)
        self._meter = LoadMeter(inventory, state)
        sandbox = detect.choose(settings.sandbox)
        broker = Broker()
        spool = Spool(state / "spool", broker)
        self._logs = logs = LogStore(state / "logs", clock, settings.log_limit)
        self.journal = journal = Journal(store, spool, broker, clock)
        self.switch = switch = Switch(clock, store, broker, journal)
        isolated = not sandbox.missing([Feature.MOUNTS])
        builds = SandboxedBuilds(sandbox, state / "builds", provision_owner()) if isolated else DirectRunner()
        images = ImageBuilder(state / "images", builds, _uv())
        self._provision = provision = Provision(settings, store, sandbox, inventory, images, self._app_name)
        self.templates = templates = Templates(clock, sandbox, logs, state / "templates")
        services = Services(
            clock=clock,
            store=store,
            switch=switch,
            logs=logs,
            sandbox=sandbox,
            folder=state / "containers",
            notes=state / "started",
            templates=templates,
            machine_mib=inventory.memory_mib,
            prepare=provision.prepare,
            hidden=provision.hidden,
        )
        self.fleet = fleet = Fleet(services)
        switch.containers = fleet
        self.scaler = scaler = Scaler(clock, store, switch, fleet, inventory, self._meter)
        fleet.changed = scaler.changed
        fleet.on_freed = scaler.freed
        self.apps = apps = Apps(clock, store, switch, journal, fleet, scaler, logs)
        switch.spec_of = apps.spec_of
        self.runs = runs = Runs(clock, store, switch, fleet, spool, provision.runs, isolated)
        runs.follow(journal)
        self._retention = Retention(clock, store, apps, logs, spool, provision, state / "cache")
        self._sandbox = sandbox
        self._calls = CallApi(clock, store, apps, switch, journal, logs, provision.refuse)
        self._objects = ObjectApi(clock, store, provision)
        self._run_api = RunApi(clock, store, apps, switch, journal, broker, provision, runs)
        self._objects.secret_changed = templates.forget_secret
        provision.held_images, provision.release_images = templates.images, templates.release
        methods = self._methods()
        self.frontend = Frontend(switch, journal, broker, fleet, templates, logs, methods, INNER_METHODS)
        self.frontend.on_gone = self._objects.forget
        self._listeners = listeners

    def _methods(self) -> dict[str, Method]:
        """The API."""
        admin = AdminApi(
            self._settings,
            self._clock,
            self.store,
            self.apps,
            self.fleet,
            self.switch,
            self.scaler,
            self._logs,
            self._provision,
            self._inventory,
            self._retention,
            self._sandbox.name,
            self.stop,
        )
        sandboxes = SandboxApi(
            self._clock,
            self.store,
            self.apps,
            self.fleet,
            self.scaler,
            self._provision,
            self._logs,
            self._inventory,
            Execs(self._sandbox, self._provision),
        )
        images = ImageApi(self.store, self.apps, self._provision)
        methods = self._calls.methods()
        for part in (self._objects, self._run_api, admin, sandboxes, images):
            methods |= part.methods()
        return methods

    def _app_name(self, app_id: str) -> str:
        return self.store.app(app_id).name

    def stop(self, reason: str, hand_over: bool = False) -> None:
        """`hand_over`: containers and apps go on, for the server that follows."""
        if not self._stopping.is_set():
            print(f"stopping: {reason}", flush=True)
            self._hand_over = hand_over
            self._stopping.set()

    # Start: from the store alone

    def recover(self) -> None:
        """Containers first, so that inputs which they may still have are held back; then the inputs."""
        self.apps.recover()
        alive = self.apps.alive()
        kept: list[str] = []
        notes = self._settings.state_dir / "started"
        rows = {record.container_id: record for record in [*noted(notes), *self.store.containers()]}
        for record in rows.values():
            stopped = record.app_id not in alive
            spec = from_json(FunctionSpec, self.store.function(record.function).spec)
            if not stopped and self.fleet.recover(record, spec):
                kept.append(record.container_id)
                continue
            self._forget_container(record, stopped)
        folder = self._settings.state_dir / "containers"
        for leftover in set(os.listdir(folder)) - set(kept):
            # One that was started as the worker died, before its row.
            remove_blocking(read_group(str(folder / leftover)))
            remove_folder(folder / leftover)
        for name in set(os.listdir(notes)) - set(kept):
            (notes / name).unlink()
        self.templates.remove_leftovers(set(kept))
        self._sandbox.remove_leftovers()
        count = self._calls.recover()
        self.runs.recover(alive)
        if kept or count:
            print(f"recovered {len(kept)} containers and {count} inputs", flush=True)
        for app_id in alive:
            for call in self.store.calls(app_id, limit=1_000_000):
                if call.state is CallState.OPEN:
                    self.switch.open_calls[call.call] = call
                    self.frontend.abandon_later(call.call)
        self.apps.recover_clients()

    def _forget_container(self, record: ContainerRecord, kill: bool) -> None:
        folder = str(self._settings.state_dir / "containers" / record.container_id)
        process = None
        if kill and record.pid:
            process = self._sandbox.adopt(record.container_id, folder, record.pid, record.pid_started)
        if process is not None:
            process.kill()
            process.close()
            reason = "its app was stopped"
        else:
            seen = read_exit(folder)
            reason = "it ended while the server was away" + (f": {seen.describe()}" if seen else "")
            record = with_code(record, seen)
        ended = dataclasses.replace(record, stopped_at=self._clock.wall(), state="dead", reason=reason)
        self._loop.create_task(_awaited(self.store.put_container(ended)))

    async def run(self) -> None:
        self.recover()
        inner, outer = self._listeners
        accept_on(inner, self._loop, lambda sock: self.frontend.connected(sock, inner=True))
        accept_on(outer, self._loop, lambda sock: self.frontend.connected(sock, inner=False))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.stop, "signal")
        timers = [
            self._loop.create_task(self._every(TICK, self.switch.tick)),
            self._loop.create_task(self._every(SCALE_INTERVAL, self.scaler.tick)),
            self._loop.create_task(self._every(1.0, self._meter.measure)),
            self._loop.create_task(self._every(USAGE_INTERVAL, self._account)),
            self._loop.create_task(Watchdog(self.fleet).run()),
            self._loop.create_task(RunWatch(self._clock, self.store, self.fleet, self.runs).run()),
            self._loop.create_task(self._watch_idle()),
            self._loop.create_task(self._sweep()),
        ]
        await self._stopping.wait()
        for timer in timers:
            timer.cancel()
        await self._shut_down()

    async def _every(self, seconds: float, action: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                action()
            except Exception:  # a fault in one round must not end all later ones: retries and time-outs hang on them
                traceback.print_exc()

    def _account(self) -> None:
        for container in self.fleet.containers.values():
            if container.process is not None:
                self._loop.create_task(_awaited(self.store.add_usage(container.usage(self._clock.wall()))))

    async def _watch_idle(self) -> None:
        """End when there was nothing to do for `idle_exit` seconds. Deployments are something to do."""
        idle_since = self._clock.monotonic()
        while True:
            await asyncio.sleep(min(1.0, self._settings.idle_exit / 4))
            if self.apps.alive() or self.fleet.containers or self.frontend.clients():
                idle_since = self._clock.monotonic()
            elif self._clock.monotonic() - idle_since >= self._settings.idle_exit:
                self.stop(f"idle for {self._settings.idle_exit:g} s")

    async def _sweep(self) -> None:
        while True:
            try:
                await self._retention.sweep()
            except Exception:  # a full disk, or a file that somebody else removed: tried again in an hour
                traceback.print_exc()
            await asyncio.sleep(RETENTION_INTERVAL)

    async def _shut_down(self) -> None:
        self.scaler.halt()
        self.fleet.halt()
        if not self._hand_over:
            await self._stop_everything()
        await self.templates.end_all("the server ends")
        await self.journal.settle()
        for listener in self._listeners:  # who comes from now on waits in the backlog, for the next server
            self._loop.remove_reader(listener)
        for peer in list(self.frontend.peers):
            peer.close()
        self.store.close()

    async def _stop_everything(self) -> None:
        """Ephemeral apps end with the server; deployments and detached runs keep their inputs for the next one."""
        reason = "the server was stopped"
        ended = [a.app_id for a in self.apps.alive().values() if a.state is AppState.EPHEMERAL]
        stopping = [self.apps.stop(app_id, reason) for app_id in ended]
        for container in list(self.fleet.containers.values()):
            if container.app_id not in ended:
                self.fleet.stop(container.container_id, reason, within=10.0)
        await asyncio.gather(*stopping)
        await self.fleet.settle()


async def _awaited(write: object) -> None:
    with contextlib.suppress(errors.ResourceError):
        await write  # type: ignore[misc]


def _uv() -> Path:
    """The uv that was installed with Lorry, else one on PATH."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise errors.InvalidError("uv is missing: install it with `pip install uv`")
    return Path(found)


async def _main(settings: Settings, listeners: list[socket.socket]) -> None:
    worker = Worker(settings, listeners)
    (settings.state_dir / "server.json").write_text(json.dumps({"pid": os.getpid()}))
    await worker.run()


def main() -> int:
    settings = resolve()
    listeners = [socket.socket(fileno=int(number)) for number in os.environ.pop("LORRY_LISTEN").split(",")]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # One descriptor per connection, per output of a container and per large payload under way: take what there is.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0o022)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        uvloop.run(_main(settings, listeners))
    except errors.Error as refused:
        print(f"lorry server: {refused}", file=sys.stderr, flush=True)
        return EXIT_CONFIGURATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
