"""The API's methods for what functions use: uploaded files, images, volumes, secrets."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorry import errors
from lorry.clock import Clock
from lorry.ids import new_id
from lorry.images.indexes import IndexSettings
from lorry.model.function import NAMED_SECRET, FunctionSpec
from lorry.model.image import ImageSpec
from lorry.model.records import SecretRecord, VolumeRecord
from lorry.server.build_lines import BuildLines
from lorry.server.frontend import Method, Session
from lorry.server.parameters import checked, fitted
from lorry.server.provision import Provision
from lorry.storage.blobs import BlobWriter
from lorry.store.interface import Store

MAX_READ = 1 << 20
"""Bytes of a file in one reply."""


class ObjectApi:
    def __init__(self, clock: Clock, store: Store, provision: Provision) -> None:
        self._clock = clock
        self._store = store
        self._provision = provision
        self._uploads: dict[tuple[Any, str], BlobWriter] = {}
        self.secret_changed: Callable[[str], None] = lambda _key: None
        """A named secret was changed or deleted; as functions refer to it."""

    def methods(self) -> dict[str, Method]:
        names = (
            "blobs_missing blob_put image_ensure function_check volume_create volume_lookup volume_list volume_delete "
            "volume_listdir volume_read volume_put volume_remove volume_copy volume_sync secret_put secret_lookup "
            "secret_list secret_delete"
        )
        return {name: getattr(self, name) for name in names.split()}

    def forget(self, session: Session) -> None:
        """Its half-done uploads are worth nothing."""
        for key in [key for key in self._uploads if key[0] is session]:
            self._uploads.pop(key).abort()

    # Files

    async def blobs_missing(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{digests} → {missing}: those that have to be sent."""
        return {"missing": self._provision.blobs.missing(params["digests"])}

    async def blob_put(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{digest, offset, data (base64), last} → {size, done}: a piece of a file, and how much of it is here now.

        A piece that does not begin there is not taken: after a lost connection the client goes on from `size`, which
        is 0. On `last` the digest is checked."""
        key = (session, params["digest"])
        writer = self._uploads.get(key)
        if writer is None:
            if self._provision.blobs.has(params["digest"]):  # whoever sent it, or the answer was lost
                return {"size": params["offset"], "done": True}
            writer = self._uploads[key] = self._provision.blobs.writer()
        if params["offset"] != writer.size:
            return {"size": writer.size, "done": False}
        await asyncio.to_thread(writer.write, params["data"])
        if params["last"]:
            del self._uploads[key]
            await asyncio.to_thread(writer.commit, params["digest"])
        return {"size": writer.size, "done": params["last"]}

    # Images

    async def image_ensure(self, session: Session, params: dict[str, Any], number: int) -> Any:
        """{spec, settings}: EVENTs {"line"} while it is built → {digest, cached, seconds}."""
        spec = fitted(ImageSpec, params["spec"])
        given = checked("image_ensure's settings", params.get("settings", {}))
        settings = IndexSettings(
            env=given.get("env", {}),
            secrets=tuple(given.get("secrets", ())),
            readable=tuple(given.get("readable", ())),
        )

        log = BuildLines(session.peer, number)
        build = asyncio.ensure_future(self._provision.ensure_image(spec, settings, log))
        while not build.done():
            await asyncio.wait([build], timeout=0.2)
            if session.peer.closed:  # nobody waits for it any more; others that do keep it going
                build.cancel()
        log.tell_rest()
        built = await build
        return {"digest": built.digest, "cached": built.cached, "seconds": built.build_seconds}

    async def function_check(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{specs}: InvalidError if this machine's sandbox cannot give what one of them declares."""
        for text in params["specs"]:
            self._provision.refuse(fitted(FunctionSpec, text))
        return {}

    # Volumes

    async def volume_create(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{name or null, or_get} → {volume_id}"""
        name = params.get("name")
        if session.container is not None:  # inside, a handle finds what its function declares, and makes nothing
            return await self.volume_lookup(session, params, _number)
        if name is not None and params.get("or_get"):
            try:
                return {"volume_id": self._store.volume(name=name).volume_id}
            except errors.NotFoundError:
                pass
        record = VolumeRecord(volume_id=new_id("vo"), name=name, created_at=self._clock.wall())
        self._provision.volumes.create(record.volume_id)
        try:
            await self._store.add_volume(record)
        except errors.AlreadyExistsError:
            self._provision.volumes.delete(record.volume_id)
            if not params.get("or_get"):
                raise
            return {"volume_id": self._store.volume(name=name).volume_id}
        return {"volume_id": record.volume_id}

    async def volume_lookup(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        record = self._store.volume(name=params.get("name"), volume_id=params.get("volume_id"))
        _check_declared(session, record.volume_id)
        return dataclasses.asdict(record)

    async def volume_list(self, _session: Session, _params: dict[str, Any], _number: int) -> Any:
        rows = [{**dataclasses.asdict(v), "bytes": self._usage(v.volume_id)} for v in self._store.volumes()]
        return {"volumes": rows}

    def _usage(self, volume_id: str) -> int:
        return self._provision.volumes.usage(volume_id).bytes

    async def volume_delete(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        await self._store.delete_volume(params["volume_id"])
        await asyncio.to_thread(self._provision.volumes.delete, params["volume_id"])
        return {}

    async def volume_listdir(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{volume_id, path, recursive} → {entries: [{path, type, size, mtime}]}"""
        _check_declared(session, params["volume_id"])
        entries = await asyncio.to_thread(
            lambda: list(
                self._provision.volumes.listdir(params["volume_id"], params["path"], params.get("recursive", False))
            )
        )
        return {"entries": [dataclasses.asdict(entry) for entry in entries]}

    async def volume_read(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        """{volume_id, path, offset} → {data (base64), end}: at most 1 MiB at a time."""
        _check_declared(session, params["volume_id"])
        data = await asyncio.to_thread(
            self._provision.volumes.read, params["volume_id"], params["path"], params["offset"], MAX_READ
        )
        return {"data": base64.b64encode(data).decode(), "end": len(data) < MAX_READ}

    async def volume_put(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{volume_id, path, digest, mode, replace}: a blob that was uploaded before appears in the volume."""
        blob = self._provision.blobs.path(params["digest"])
        if not self._provision.blobs.has(params["digest"]):
            raise errors.NotFoundError(f"no file {params['digest']} was uploaded before")
        await asyncio.to_thread(self._put, params, blob)
        return {}

    def _put(self, params: dict[str, Any], blob: Path) -> None:
        volumes = self._provision.volumes
        if not params.get("replace"):
            self._refuse_existing(params)
        # A copy: the blob may be part of a source snapshot, and files of a volume are written in place.
        staged = volumes.staging / new_id("up")
        shutil.copyfile(blob, staged)
        volumes.write_from(params["volume_id"], params["path"], staged, params.get("mode", 0o644))

    def _refuse_existing(self, params: dict[str, Any]) -> None:
        try:
            self._provision.volumes.read(params["volume_id"], params["path"], 0, 1)
        except errors.NotFoundError:
            return
        except errors.InvalidError:
            pass
        raise errors.AlreadyExistsError(
            f"{params['path']} exists in the volume already; batch_upload(force=True) replaces files"
        )

    async def volume_remove(self, session: Session, params: dict[str, Any], _number: int) -> Any:
        _check_declared(session, params["volume_id"], writes=True)
        await asyncio.to_thread(
            self._provision.volumes.remove, params["volume_id"], params["path"], params.get("recursive", False)
        )
        return {}

    async def volume_copy(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{volume_id, sources, target}"""
        await asyncio.to_thread(self._copy, params["volume_id"], params["sources"], params["target"])
        return {}

    def _copy(self, volume_id: str, sources: list[str], target: str) -> None:
        """As `cp SOURCES TARGET`: a target that is a folder, or several sources, copies into it."""
        volumes = self._provision.volumes
        into = len(sources) > 1 or target.endswith("/")
        for source in sources:
            staged = volumes.staging / new_id("cp")
            with staged.open("wb") as file:
                offset = 0
                while piece := volumes.read(volume_id, source, offset, MAX_READ):
                    offset += file.write(piece)
            name = source.rstrip("/").rpartition("/")[2]
            volumes.write_from(volume_id, f"{target.rstrip('/')}/{name}" if into else target, staged)

    async def volume_sync(self, _session: Session, _params: dict[str, Any], _number: int) -> Any:
        """commit and reload: on one machine every container sees the same folder, so only the disk is told."""
        return {"at": self._clock.wall()}

    # Secrets

    async def secret_put(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        """{name or null, values, replace} → {secret_id}. An unnamed one is known by its content."""
        name, values = params.get("name"), params["values"]
        if name is not None and not params.get("replace", True):
            try:
                self._store.secret(name=name)
            except errors.NotFoundError:
                pass
            else:
                raise errors.AlreadyExistsError(f"secret {name!r} exists; use --force to replace it")
        secret_id = new_id("se", self._content_id(name, values))
        record = SecretRecord(
            secret_id=secret_id,
            name=name,
            keys=tuple(sorted(values)),
            sealed=self._provision.secrets.seal(secret_id, values),
            created_at=self._clock.wall(),
        )
        await self._store.put_secret(record)
        if name is not None:
            self.secret_changed(NAMED_SECRET + name)
        return {"secret_id": secret_id}

    def _content_id(self, name: str | None, values: dict[str, str]) -> bytes:
        """Same name and values, same id: a second run of an app finds the same secret. Keyed, because ids are shown:
        a plain hash would let anyone who sees one try values."""
        text = repr((name, sorted(values.items())))
        return self._provision.secrets.fingerprint(text.encode())[:16]

    async def secret_lookup(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        record = self._store.secret(name=params.get("name"), secret_id=params.get("secret_id"))
        missing = sorted(set(params.get("required_keys", ())) - set(record.keys))
        if missing:
            raise errors.NotFoundError(
                f"secret {record.name!r} has no key {missing[0]!r}; it has {', '.join(record.keys)}"
            )
        return {"secret_id": record.secret_id, "keys": list(record.keys)}

    async def secret_list(self, _session: Session, _params: dict[str, Any], _number: int) -> Any:
        """Names and keys; values leave the server only into containers."""
        rows = [
            {"name": s.name, "keys": list(s.keys), "created_at": s.created_at, "secret_id": s.secret_id}
            for s in self._store.secrets()
        ]
        return {"secrets": rows}

    async def secret_delete(self, _session: Session, params: dict[str, Any], _number: int) -> Any:
        record = self._store.secret(name=params["name"])
        await self._store.delete_secret(record.secret_id)
        self.secret_changed(NAMED_SECRET + params["name"])
        return {}


def _check_declared(session: Session, volume_id: str, *, writes: bool = False) -> None:
    """Code in a container reaches the volumes that its function mounts, and no others (promise 5)."""
    if session.container is None:
        return
    for mount in session.container.spec.volumes:
        if mount.volume_id == volume_id and not (writes and mount.read_only):
            return
    raise errors.NotFoundError("this function does not mount that volume, or only for reading: see volumes=")
