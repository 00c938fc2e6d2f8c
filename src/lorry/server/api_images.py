"""The API's methods for images on disk: which there are, who uses them, and removing the others."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from lorry import errors
from lorry.images.shelf import StoredImage
from lorry.model.function import FunctionSpec
from lorry.server.apps import Apps
from lorry.server.frontend import Method, Session
from lorry.server.provision import Provision
from lorry.store.interface import Store
from lorry.wire.codec import from_json


class ImageApi:
    def __init__(self, store: Store, apps: Apps, provision: Provision) -> None:
        self._store = store
        self._apps = apps
        self._provision = provision

    def methods(self) -> dict[str, Method]:
        return {"image_list": self.image_list, "image_prune": self.image_prune}

    async def image_list(self, _session: Session, _params: dict[str, Any], _number: int) -> Any:
        """→ {images: [{digest, kind, size, layers: [{digest, title, size}], packages, created, last_used, used_by}]}"""
        users = await self._users()
        layers = {layer.digest: layer for layer in await self._provision.images.layers()}
        rows = []
        for image in await self._provision.images.list():
            own = [layers[digest] for digest in image.layers if digest in layers]
            rows.append(
                {
                    "digest": image.digest,
                    "kind": _kind(image, own[0].title if own else ""),
                    "size": image.size,
                    "layers": [{"digest": one.digest, "title": one.title, "size": one.size} for one in own],
                    "packages": dict(image.packages),
                    "created": image.created,
                    "last_used": image.last_used,
                    "used_by": sorted(users.get(image.digest, ())),
                }
            )
        return {"images": sorted(rows, key=lambda row: -row["last_used"])}

    async def image_prune(self, _session: Session, _params: dict[str, Any], _number: int) -> Any:
        """Removes what no living app, container or template uses, however young → {removed: [digest], freed: bytes}"""
        self._provision.release_images(self._apps.alive())
        before = (await self._provision.images.sizes()).total
        removed = await self._provision.images.prune(set(await self._users()), 0.0)
        freed = before - (await self._provision.images.sizes()).total
        return {"removed": [image.digest for image in removed], "freed": max(0, freed)}

    async def _users(self) -> dict[str, set[str]]:
        """Image → names of the apps that may start a container of it."""
        users: dict[str, set[str]] = {}
        for app_id, app in list(self._apps.alive().items()):
            for record in self._store.functions(app_id):
                spec = await asyncio.to_thread(from_json, FunctionSpec, record.spec)
                with contextlib.suppress(errors.ImageBuildError):  # its interpreter was deleted: it can start nothing
                    users.setdefault(await self._provision.images.digest(spec.image), set()).add(app.name)
        for image in self._provision.held_images():
            with contextlib.suppress(errors.ImageBuildError):
                users.setdefault(await self._provision.images.digest(image), set()).add("(warm template)")
        return users


def _kind(image: StoredImage, lowest: str) -> str:
    """A word for the list: what the image stands on."""
    return (lowest or "a root file system of its own") if image.layers else "Python packages above /usr"
