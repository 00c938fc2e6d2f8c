"""`Volume`: a folder that outlives containers and is seen by all that mount it."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lorry.errors import InvalidError, NotFoundError
from lorry.sdk.steps import Ask, Steps, twin
from lorry.sdk.upload import upload_files


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One entry of `listdir`. `type`: "file", "directory" or "symlink"; `size` in bytes, `mtime` in Unix seconds."""

    path: str
    type: str
    size: int
    mtime: float


class Volume:
    """Made by `from_name` or `ephemeral`; mounted with `volumes={"/data": volume}`."""

    __lorry_handle__ = True

    def __init__(self, name: str | None, volume_id: str | None = None, create: bool = False) -> None:
        self._name = name
        self._volume_id = volume_id
        self._create = create
        self.is_read_only = False

    @staticmethod
    def from_name(
        name: str, *, environment_name: str | None = None, create_if_missing: bool = False, version: int | None = None
    ) -> Volume:
        """A handle; NotFoundError at first use if it does not exist and `create_if_missing` is not set."""
        if not name or "/" in name:
            raise InvalidError(f"a volume's name must be a plain word, not {name!r}")
        return Volume(name, create=create_if_missing)

    @staticmethod
    def from_id(volume_id: str) -> Volume:
        return Volume(None, volume_id)

    @staticmethod
    @contextlib.contextmanager
    def ephemeral() -> Iterator[Volume]:
        """A volume that is deleted at the end of the block."""
        volume = Volume(None, create=True)
        volume.hydrate()
        try:
            yield volume
        finally:
            volume.delete_self()

    def read_only(self) -> Volume:
        """The same volume, mounted so that containers cannot write."""
        other = Volume(self._name, self._volume_id, self._create)
        other.is_read_only = True
        return other

    @property
    def object_id(self) -> str | None:
        return self._volume_id

    @property
    def name(self) -> str | None:
        return self._name

    def __repr__(self) -> str:
        return f"<lorry.Volume {self._name or self._volume_id}>"

    def __reduce__(self) -> Any:
        return Volume, (self._name, self._volume_id, self._create)

    def _hydrated(self, *, afresh: bool = False) -> Steps[str]:
        """Its id. `afresh`: look the name up again, for an app that starts: it may have been made anew."""
        if self._volume_id is None or (afresh and self._name is not None):
            method = "volume_create" if self._create else "volume_lookup"
            try:
                reply = yield Ask(method, {"name": self._name, "or_get": True})
            except NotFoundError as missing:
                raise NotFoundError(
                    f"{missing} `lorry volume create {self._name}` makes it, and so does create_if_missing=True"
                ) from None
            self._volume_id = str(reply["volume_id"])
        return self._volume_id

    def _hydrate(self) -> Steps[Volume]:
        yield from self._hydrated()
        return self

    hydrate = twin(_hydrate)

    def _commit(self) -> Steps[None]:
        """Writes are visible to others at once on one machine; this is for programs that also run elsewhere."""
        yield Ask("volume_sync", {"volume_id": (yield from self._hydrated())})

    commit = twin(_commit)
    reload = twin(_commit)

    def _listdir(self, path: str = "/", *, recursive: bool = False) -> Steps[list[FileEntry]]:
        volume_id = yield from self._hydrated()
        reply = yield Ask("volume_listdir", {"volume_id": volume_id, "path": path, "recursive": recursive})
        return [FileEntry(**entry) for entry in reply["entries"]]

    listdir = twin(_listdir)

    def iterdir(self, path: str = "/", *, recursive: bool = True) -> Iterator[FileEntry]:
        yield from self.listdir(path, recursive=recursive)

    def read_file(self, path: str) -> Iterator[bytes]:
        """The file's content in pieces of at most 1 MiB. NotFoundError if it is not there."""
        offset, end = 0, False
        while not end:
            data, end = self._read_piece(path, offset)
            offset += len(data)
            yield data

    def _read_piece_steps(self, path: str, offset: int) -> Steps[tuple[bytes, bool]]:
        volume_id = yield from self._hydrated()
        reply = yield Ask("volume_read", {"volume_id": volume_id, "path": path, "offset": offset})
        return base64.b64decode(reply["data"]), bool(reply["end"])

    _read_piece = twin(_read_piece_steps)

    def read_file_into_fileobj(self, path: str, fileobj: BinaryIO) -> int:
        """Bytes written."""
        return sum(fileobj.write(piece) for piece in self.read_file(path))

    def _remove_file(self, path: str, recursive: bool = False) -> Steps[None]:
        volume_id = yield from self._hydrated()
        yield Ask("volume_remove", {"volume_id": volume_id, "path": path, "recursive": recursive})

    remove_file = twin(_remove_file)

    def _copy_files(self, src_paths: list[str], dst_path: str, recursive: bool = False) -> Steps[None]:
        """Inside the volume, as `cp` would."""
        volume_id = yield from self._hydrated()
        params = {"volume_id": volume_id, "sources": src_paths, "target": dst_path, "recursive": recursive}
        yield Ask("volume_copy", params)

    copy_files = twin(_copy_files)

    def _delete_self(self) -> Steps[None]:
        yield Ask("volume_delete", {"volume_id": (yield from self._hydrated())})

    delete_self = twin(_delete_self)

    @staticmethod
    def delete(name: str) -> None:
        """Delete a named volume and everything in it."""
        Volume.from_name(name).delete_self()

    @contextlib.contextmanager
    def batch_upload(self, force: bool = False) -> Iterator[BatchUpload]:
        """Upload files and folders: collected in the block, sent at its end. `force` replaces existing files."""
        batch = BatchUpload()
        yield batch
        self._send(batch, force)

    def _send_steps(self, batch: BatchUpload, force: bool) -> Steps[None]:
        volume_id = yield from self._hydrated()
        digests = yield from upload_files([path for path, _remote, _mode in batch.files])
        for digest, (_path, remote, mode) in zip(digests, batch.files, strict=True):
            params = {"volume_id": volume_id, "path": remote, "digest": digest, "mode": mode, "replace": force}
            yield Ask("volume_put", params)

    _send = twin(_send_steps)


class BatchUpload:
    """What `batch_upload` gives."""

    def __init__(self) -> None:
        self.files: list[tuple[Path, str, int]] = []

    def put_file(self, local_file: str | os.PathLike[str], remote_path: str, mode: int | None = None) -> None:
        """One file. A remote path that ends with / is a folder."""
        path = Path(local_file)
        if not path.is_file():
            raise InvalidError(f"{path} is not a file on this machine")
        remote = remote_path + path.name if remote_path.endswith("/") else remote_path
        self.files.append((path, remote, mode if mode is not None else path.stat().st_mode & 0o777))

    def put_directory(self, local_path: str | os.PathLike[str], remote_path: str, recursive: bool = True) -> None:
        root = Path(local_path)
        if not root.is_dir():
            raise InvalidError(f"{root} is not a folder on this machine")
        for path in sorted(root.rglob("*") if recursive else root.iterdir()):
            if path.is_file():
                remote = PurePosixPath(remote_path) / path.relative_to(root).as_posix()
                self.put_file(path, str(remote))
