"""What is deleted, and when: results after 7 days; rows, logs and training runs after 30; files that nothing refers
to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from pathlib import Path

from lorry import errors
from lorry.clock import Clock
from lorry.model.function import FunctionSpec
from lorry.model.run import RunState
from lorry.server.apps import Apps
from lorry.server.logs import LogStore
from lorry.server.parcels import Spool
from lorry.server.provision import Provision
from lorry.store.interface import Store
from lorry.timeouts import RESULTS_KEPT, ROWS_KEPT
from lorry.wire.codec import from_json

YOUNG = 3600.0
"""Seconds for which an unused blob, tree or image stays: an upload under way refers to it in a moment."""


class Retention:
    def __init__(
        self, clock: Clock, store: Store, apps: Apps, logs: LogStore, spool: Spool, provision: Provision, caches: Path
    ) -> None:
        self._clock = clock
        self._store = store
        self._apps = apps
        self._logs = logs
        self._spool = spool
        self._provision = provision
        self._caches = caches

    async def sweep(self) -> None:
        """Every hour: what is too old, and files that nothing uses."""
        await self._expire()
        await self._collect_runs()
        blobs, trees, _ = await self._in_use()
        await asyncio.to_thread(self._collect_files, blobs, trees, self._clock.wall() - YOUNG)

    async def _expire(self) -> None:
        now = self._clock.wall()
        await self._store.expire(calls_before=now - RESULTS_KEPT, rows_before=now - ROWS_KEPT)
        self._spool.collect(self._known, now - YOUNG)
        known = {app.app_id for app in self._store.apps()}
        for app_id in self._logs.sizes().keys() - known:
            self._logs.delete(app_id)

    def _known(self, call: bytes) -> bool:
        try:
            self._store.call(call)
        except errors.NotFoundError:
            return False
        return True

    async def prune(self, *, everything: bool) -> dict[str, int]:
        """Bytes freed by kind. Nothing that a living app uses goes, whatever its age.

        `everything`: young images, caches, and logs of stopped apps, which otherwise stay as long as their rows."""
        await self._expire()
        now = self._clock.wall()
        older = now if everything else now - YOUNG
        if everything:
            self._provision.release_images(self._apps.alive())
        blobs, trees, images = await self._in_use()
        freed = {
            "files": await asyncio.to_thread(self._collect_files, blobs, trees, older),
            "images": await self._prune_images(images, 0.0 if everything else YOUNG),
            "runs": await self._collect_runs(),
        }
        if everything:
            freed["logs"] = self._prune_logs()
            freed["caches"] = await asyncio.to_thread(self._drop_caches)
        return freed

    async def _in_use(self) -> tuple[set[str], set[str], set[str]]:
        """Digests of blobs, trees and images of living apps, and of those whose runs can be resumed."""
        blobs: set[str] = set()
        trees: set[str] = set()
        images: set[str] = set()
        unfinished = {run.app_id for run in self._store.runs() if run.state is not RunState.DONE}
        for app_id in self._apps.alive().keys() | unfinished:
            for record in self._store.functions(app_id):
                spec = from_json(FunctionSpec, record.spec)
                blobs |= set(spec.image.blobs())
                trees.add(self._provision.source(spec).name)
                with contextlib.suppress(errors.ImageBuildError):  # its interpreter was deleted: it can start nothing
                    images.add(await self._provision.images.digest(spec.image))
                if spec.source:
                    blobs.add(spec.source)
                    manifest = json.loads(self._provision.blobs.path(spec.source).read_bytes())
                    blobs |= {digest for _path, digest, _mode in manifest}
        for image in self._provision.held_images():
            with contextlib.suppress(errors.ImageBuildError):
                images.add(await self._provision.images.digest(image))
        return blobs, trees, images

    async def _collect_runs(self) -> int:
        """Folders of runs that have no row any more. A row is there before its folder, so the rows are read last."""
        runs = self._provision.runs
        there = await asyncio.to_thread(runs.folders)
        gone = set(there) - {run.folder for run in self._store.runs()}
        return await asyncio.to_thread(lambda: sum(map(runs.remove, gone)))

    def _collect_files(self, blobs: set[str], trees: set[str], older: float) -> int:
        self._provision.trees.collect(trees)
        return int(self._provision.blobs.collect(blobs, older).bytes)

    async def _prune_images(self, keep: set[str], unused_seconds: float) -> int:
        before = (await self._provision.images.sizes()).total
        await self._provision.images.prune(keep, unused_seconds)
        return max(0, before - (await self._provision.images.sizes()).total)

    def _prune_logs(self) -> int:
        alive = self._apps.alive()
        freed = 0
        for app_id, size in self._logs.sizes().items():
            if app_id not in alive:
                self._logs.delete(app_id)
                freed += size
        return freed

    def _drop_caches(self) -> int:
        freed = 0
        for folder in self._caches.iterdir() if self._caches.is_dir() else ():
            freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            shutil.rmtree(folder, ignore_errors=True)
        return freed
