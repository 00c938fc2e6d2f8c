"""The API's methods for the person who runs the machine: status, containers, disk, usage, stop."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorry import __version__, errors
from lorry.clock import Clock
from lorry.config import Settings
from lorry.lifecycle.container import ContainerState
from lorry.model import coldstart
from lorry.model.coldstart import ColdStart
from lorry.model.records import AppState
from lorry.scheduler.inventory import Inventory
from lorry.server.apps import Apps
from lorry.server.container import Container
from lorry.server.fleet import COLD_START, Fleet
from lorry.server.frontend import Method, Session
from lorry.server.logs import LogStore
from lorry.server.provision import Provision
from lorry.server.retention import Retention
from lorry.server.scaler import Scaler
from lorry.server.switch import Switch
from lorry.store.interface import Store

MOST_STARTS = 1000
"""Containers whose start one answer tells."""


class AdminApi:
    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        store: Store,
        apps: Apps,
        fleet: Fleet,
        switch: Switch,
        scaler: Scaler,
        logs: LogStore,
        provision: Provision,
        inventory: Inventory,
        retention: Retention,
        tier: str,
        shutdown: Callable[[str, bool], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._store = store
        self._apps = apps
        self._fleet = fleet
        self._switch = switch
        self._scaler = scaler
        self._logs = logs
        self._provision = provision
        self._inventory = inventory
        self._retention = retention
        self._tier = tier
        self._shutdown = shutdown
        self._started = clock.wall()

    def methods(self) -> dict[str, Method]:
        names = "server_status server_stop container_list container_stop pending df prune usage why coldstarts"
        return {name: getattr(self, name) for name in names.split()}

    async def server_status(self, session: Session, _params: dict[str, Any], _number: int) -> Any:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "keeper": int(os.environ.get("LORRY_KEEPER", "0")),
            "started_at": self._started,
            "state_dir": str(self._settings.state_dir),
            "sandbox": self._tier,
            "cores": self._inventory.cores,
            "memory_mib": self._inventory.memory_mib,
            "gpus": [dataclasses.asdict(gpu) for gpu in self._inventory.gpus],
            "apps": len(self._apps.alive()),
            "containers": len(self._fleet.containers),
            "served": self._switch.served,
            "epoch": self._store.epoch,
        }

    async def server_stop(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{force, restart} → {keeper, worker, grace}: the processes that end now, and the seconds that runs may take to
        save before. Refused while apps run, unless forced. Deployments come back with the next start. `restart`:
        another server follows at once, and apps and containers go on meanwhile."""
        restart = bool(params.get("restart"))
        running = [a for a in self._apps.alive().values() if a.state is AppState.EPHEMERAL or not a.version]
        if running and not restart and not params.get("force"):
            names = ", ".join(sorted({app.name for app in running}))
            raise errors.ExecutionError(f"these apps are running: {names}. Stop them first, or use --force")
        self._shutdown("a client asked for it", restart)
        runs = [policy for c in self._fleet.containers.values() if (policy := c.spec.resumable) is not None]
        grace = max((policy.grace for policy in runs), default=0.0)
        return {"keeper": int(os.environ.get("LORRY_KEEPER", "0")), "worker": os.getpid(), "grace": grace}

    async def container_list(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{app_id?, all}: living containers, and with `all` those that ended."""
        wanted = params.get("app_id")
        rows = [self._describe(c) for c in self._fleet.containers.values() if wanted in (None, c.app_id)]
        if params.get("all"):
            live = {row["container_id"] for row in rows}
            records = self._store.containers(app_id=wanted, live_only=False)
            rows += [_ended(record) for record in records if record.container_id not in live]
        return {"containers": rows}

    def _describe(self, container: Container) -> dict[str, Any]:
        usage = container.process.usage() if container.process else None
        queue = self._switch.dispatcher.queues.get(container.target)
        slot = queue.slots.get(container.container_id) if queue else None
        return {
            "container_id": container.container_id,
            "app_id": container.app_id,
            "app": self._apps.alive()[container.app_id].name if container.app_id in self._apps.alive() else "",
            "function": container.spec.tag,
            "state": container.state.value,
            "started_at": container.started_wall,
            "stopped_at": None,
            "running": len(slot.leases) if slot else 0,
            "memory_mib": usage.memory if usage else 0,
            "peak_memory_mib": usage.peak_memory if usage else 0,
            "cpu_seconds": usage.cpu_seconds if usage else 0.0,
            "gpus": list(container.reservation.gpu_indices),
            "reason": container.reason,
            "start": "template" if container.process and container.process.forked else "cold",
            "cold": container.cold,
        }

    async def coldstarts(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{app_id} → the starts of its newest containers by stage, newest first, and advice by function."""
        starts: list[ColdStart] = []
        tags = {row.number: row.tag for row in self._store.functions(params["app_id"])}
        for record in self._store.containers(app_id=params["app_id"], live_only=False)[:MOST_STARTS]:
            for row in self._store.decisions(record.container_id):
                if row.kind == COLD_START:
                    starts.append(coldstart.from_json(tags[record.function], record.created_at, row.reason))
        by_function: dict[str, list[ColdStart]] = {}
        for start in starts:
            by_function.setdefault(start.function, []).append(start)
        return {
            "starts": [dataclasses.asdict(start) for start in sorted(starts, key=lambda s: -s.started_at)],
            "advice": {function: coldstart.advice(rows) for function, rows in by_function.items()},
        }

    async def container_stop(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{container_id}: its running inputs are queued again. It is killed if it is being stopped already."""
        container_id = params["container_id"]
        container = self._fleet.containers.get(container_id)
        if container is None:
            raise errors.NotFoundError(f"no running container {container_id!r}; see `lorry container list`")
        container.charge = False
        again = container.state is ContainerState.STOPPING
        (self._fleet.kill if again else self._fleet.stop)(container_id, "a person stopped it")
        return {}

    async def pending(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{app_id} → per function: how many inputs wait and run, and why they wait."""
        rows = []
        for number, (app_id, _alive) in self._scaler.apps.items():
            queue = self._switch.dispatcher.queues.get(number)
            if queue is None or params.get("app_id") not in (None, app_id):
                continue
            rows.append(
                {
                    "app_id": app_id,
                    "function": self._switch.spec(number).tag,
                    "waiting": queue.waiting + sum(work.count for work in queue.held),
                    "retrying": len(queue.delayed),
                    "running": sum(len(slot.leases) for slot in queue.slots.values()),
                    "reason": self._scaler.pending.get(number, ""),
                }
            )
        return {"functions": rows}

    async def df(self, _session: Session, _params: dict[str, Any], _number: int) -> Any:
        """Bytes by kind, and what the disk has left."""
        disk = shutil.disk_usage(self._settings.state_dir)
        images = await self._provision.images.sizes()
        state = self._settings.state_dir
        kinds = {
            "database": self._store.sizes()["database"],
            "images": images.total,
            "volumes": sum(self._provision.volumes.usage(v.volume_id).bytes for v in self._store.volumes()),
            "logs": sum(self._logs.sizes().values()),
            "files": await asyncio.to_thread(_tree_size, [state / "blobs", state / "trees", state / "spool"]),
            "caches": await asyncio.to_thread(_tree_size, [state / "cache"]),
            "runs": await asyncio.to_thread(_tree_size, [state / "runs"]),
            "containers": await asyncio.to_thread(_tree_size, [state / "containers"]),
        }
        return {"kinds": kinds, "free": disk.free, "total": disk.total, "state_dir": str(state)}

    async def prune(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{all}: delete what nothing uses → {freed: {kind: bytes}}. `all`: also caches and young images."""
        return {"freed": await self._retention.prune(everything=bool(params.get("all")))}

    async def usage(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        return {"rows": [dataclasses.asdict(row) for row in self._store.usage(app_id=params.get("app_id"))]}

    async def why(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{subject} → decisions about it, newest first."""
        rows = [row for row in self._store.decisions(params["subject"]) if row.kind != COLD_START]
        return {"decisions": [dataclasses.asdict(row) for row in rows]}


def _ended(record: Any) -> dict[str, Any]:
    resources = json.loads(record.resources)
    return {
        "container_id": record.container_id,
        "app_id": record.app_id,
        "app": "",
        "function": "",
        "state": record.state,
        "started_at": record.created_at,
        "stopped_at": record.stopped_at,
        "running": 0,
        "memory_mib": 0,
        "peak_memory_mib": record.peak_memory,
        "cpu_seconds": 0.0,
        "gpus": resources["gpus"],
        "reason": record.reason,
    }


def _tree_size(folders: list[Path]) -> int:
    """Bytes on disk; a file with several hard links counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder in folders:
        for path, _folders, files in os.walk(folder):
            for name in files:
                try:
                    found = os.lstat(os.path.join(path, name))
                except FileNotFoundError:
                    continue
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    total += found.st_blocks * 512
    return total
