"""Brings what a container needs to this machine: image, source, files, volumes, secrets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from lorry.config import Settings
from lorry.errors import InvalidError
from lorry.images.builder import BuiltImage, ImageBuilder
from lorry.images.credentials import lines_to_hide
from lorry.images.indexes import IndexSettings
from lorry.images.rooted import BuildInputs
from lorry.model.function import NAMED_SECRET, FunctionSpec
from lorry.model.image import ImageFile, ImageSpec
from lorry.sandbox.interface import Feature, Sandbox, SandboxSpec
from lorry.sandbox.namespaces import sandbox_owner
from lorry.scheduler.inventory import Inventory
from lorry.server.blueprint import HOME, INNER_LIBRARY, PACKAGE, Ingredients, sandbox_spec
from lorry.server.container import Container
from lorry.server.run_files import RunFiles
from lorry.storage.blobs import BlobStore
from lorry.storage.secrets import SecretBox
from lorry.storage.trees import TreeStore
from lorry.storage.volumes import VolumeStore
from lorry.store.interface import Store

HIDDEN = "hidden"
"""File in a container's folder: what of its secrets is blacked out in its log, sealed."""


class Provision:
    def __init__(
        self,
        settings: Settings,
        store: Store,
        sandbox: Sandbox,
        inventory: Inventory,
        images: ImageBuilder,
        app_name: Callable[[str], str],
    ) -> None:
        state = settings.state_dir
        self._settings = settings
        self._store = store
        self._sandbox = sandbox
        self._inventory = inventory
        self._app_name = app_name
        self.images = images
        self.blobs = BlobStore(state / "blobs")
        self.trees = TreeStore(state / "trees", self.blobs)
        self.volumes = VolumeStore(state / "volumes", provision_owner())
        self.runs = RunFiles(state / "runs", provision_owner())
        self.secrets = SecretBox(state / "secret.key")
        self._library = _library(state)
        self.isolated = not sandbox.missing([Feature.MOUNTS])
        self.held_images: Callable[[], Sequence[ImageSpec]] = tuple
        """Images that run without a living app: warm templates."""
        self.release_images: Callable[[Collection[str]], None] = lambda _alive: None
        """Ends warm templates of apps that are not among the living."""
        images.supply(BuildInputs(blob=self.blobs.path, tree=self._tree, secrets=self.values_of))

    @property
    def python_path(self) -> str:
        """Where a Python that is not our runner finds `lorry`, and the user's modules."""
        return f"{INNER_LIBRARY}:{HOME}" if self.isolated else str(self._library)

    def refuse(self, spec: FunctionSpec) -> None:
        """InvalidError when this tier cannot give what the function declares; called when the app loads."""
        declared = {
            Feature.MOUNTS: bool(spec.volumes or spec.image.files),
            Feature.LAYERS: spec.image.rooted,
            Feature.MEMORY_LIMIT: spec.resources.memory_limit is not None,
            Feature.CPU_LIMIT: spec.resources.cpu_limit is not None,
            Feature.BLOCK_NETWORK: spec.block_network,
        }
        problems = self._sandbox.missing(feature for feature, wanted in declared.items() if wanted)
        if problems:
            raise InvalidError(f"function {spec.tag!r}: {problems[0]}")

    async def ensure_image(self, spec: ImageSpec, settings: IndexSettings, log: Callable[[str], None]) -> BuiltImage:
        return await self.images.ensure(spec, settings, log)

    async def prepare(self, container: Container) -> SandboxSpec:
        """Everything present, and the sandbox described. Raises what the user can act on."""
        parts = await self._parts(container)
        container.hidden = lines_to_hide(parts.secrets.values())
        if container.hidden:
            self._note_hidden(container)
        return sandbox_spec(parts, self._settings, self._library, self.isolated)

    async def describe(self, container: Container) -> SandboxSpec:
        """What a container was started as: kept, or put together again by a worker that has adopted it."""
        if container.described is None:
            parts = await self._parts(container)
            container.described = sandbox_spec(parts, self._settings, self._library, self.isolated)
        return container.described

    async def _parts(self, container: Container) -> Ingredients:
        image = await self.images.ensure(container.spec.image, IndexSettings(), lambda _line: None)
        name = self._app_name(container.app_id)
        return await asyncio.to_thread(self._gather, container, image, name)

    def _note_hidden(self, container: Container) -> None:
        """For a worker that adopts it: the values of *this* container, whatever becomes of the secrets meanwhile."""
        values = {str(number): value for number, value in enumerate(container.hidden)}
        (container.folder / HIDDEN).write_bytes(self.secrets.seal(container.container_id, values))

    def hidden(self, container: Container) -> tuple[str, ...]:
        """What `prepare` noted. In the process tier the program could damage it: then it has only itself to blame."""
        try:
            sealed = (container.folder / HIDDEN).read_bytes()
            return tuple(self.secrets.open(container.container_id, sealed).values())
        except (OSError, InvalidError):
            return ()

    def _gather(self, container: Container, image: BuiltImage, name: str) -> Ingredients:
        spec = container.spec
        return Ingredients(
            container_id=container.container_id,
            app_id=container.app_id,
            app_name=name,
            token=container.token,
            spec=spec,
            image=image,
            source=self.source(spec),
            files=self._files(spec),
            volumes=[(v.path, self._volume(v.volume_id), v.read_only) for v in spec.volumes],
            secrets=self.secret_values(spec),
            folder=container.folder,
            cache=self._cache(name),
            runs=self.runs.of_function(name, spec.tag) if spec.resumable else None,
            reservation=container.reservation,
            cores=self._inventory.cores,
        )

    def source(self, spec: FunctionSpec) -> Path:
        manifest: list[Any] = json.loads(self.blobs.path(spec.source).read_bytes()) if spec.source else []
        return self.trees.ensure(tuple((path, digest, mode) for path, digest, mode in manifest))

    def _files(self, spec: FunctionSpec) -> Path | None:
        if not spec.image.files:
            return None
        return self._tree(spec.image.files)

    def _tree(self, files: tuple[ImageFile, ...]) -> Path:
        """A folder with these files at their absolute paths."""
        return self.trees.ensure(tuple((file.path.lstrip("/"), file.digest, file.mode) for file in files))

    def _volume(self, volume_id: str) -> Path:
        self._store.volume(volume_id=volume_id)  # NotFoundError for one that was deleted
        self.volumes.create(volume_id)
        return self.volumes.path(volume_id)

    def secret_values(self, spec: FunctionSpec) -> dict[str, str]:
        return self.values_of(spec.secret_ids)

    def values_of(self, secret_ids: Sequence[str]) -> dict[str, str]:
        values: dict[str, str] = {}
        for key in secret_ids:
            name = key.removeprefix(NAMED_SECRET)
            record = self._store.secret(secret_id=key) if name == key else self._store.secret(name=name)
            values.update(self.secrets.open(record.secret_id, record.sealed))
        return values

    def _cache(self, name: str) -> Path:
        """Home's .cache of all containers of apps of this name."""
        safe = hashlib.sha256(name.encode()).hexdigest()[:16]
        folder = self._settings.state_dir / "cache" / safe
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            if owner := provision_owner():
                os.chown(folder, *owner)
        return folder


def provision_owner() -> tuple[int, int] | None:
    """Who must own what sandboxes write to; None when it is this user anyway."""
    owner = sandbox_owner()
    return None if owner is None else (owner, owner)


def _library(state: Path) -> Path:
    """A folder in which the package `lorry` lies alone: what the process tier puts on its path."""
    folder = state / "library"
    folder.mkdir(exist_ok=True)
    link = folder / "lorry"
    if not link.is_symlink() or link.resolve() != PACKAGE:
        link.unlink(missing_ok=True)
        link.symlink_to(PACKAGE)
    return folder
