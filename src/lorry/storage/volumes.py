"""Volumes: a folder each, written by containers and by uploads, read by clients."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

from lorry.errors import InvalidError, NotFoundError
from lorry.storage.atomic import (
    FILE_MODE,
    FOLDER_MODE,
    empty_folder,
    full_disk_named,
    make_folder,
    sync_folder,
    temporary_name,
)
from lorry.storage.confined import (
    Owner,
    Parts,
    delete_all,
    give,
    make_folders,
    move_away,
    named_errors,
    open_file,
    open_folder,
    parts_of,
    walk,
)

PIECE = 1 << 20
"""Bytes of one read: a client may ask for more than there is, and memory is taken for what it asks."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

logger = logging.getLogger(__name__)


class EntryType(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A fifo, socket or device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeEntry:
    path: str
    """Relative to the volume, without a leading slash."""
    type: EntryType
    size: int
    mtime: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeUsage:
    files: int
    """Everything that is not a folder."""
    bytes: int
    """Blocks that it takes on the disk; what has several names counts once."""


class VolumeStore:
    """One owner per folder. All paths are relative to a volume; a leading slash means its top.

    `owner`: who owns what uploads make, when the server is root and containers are not.
    Errors of every verb: NotFoundError for a volume or path that is not there, InvalidError for a path that
    leads through a link or file, leaves the volume, or is of the wrong type.
    """

    def __init__(self, root: Path, owner: Owner | None = None) -> None:
        self._root = make_folder(root)
        self._owner = owner
        self.staging = empty_folder(root / ".staging")
        """Where uploads are best received: on the same file system, `write_from` has only to rename."""
        self._trash = make_folder(root / ".trash")
        self._empty_trash()

    def path(self, volume_id: str) -> Path:
        """The folder to mount."""
        if not _ID.fullmatch(volume_id):
            raise InvalidError(f"{volume_id!r} is not a volume id.")
        return self._root / volume_id

    def create(self, volume_id: str) -> None:
        """Make an empty volume; nothing happens if it is there."""
        path = self.path(volume_id)
        with full_disk_named(path), contextlib.suppress(FileExistsError):
            path.mkdir()
            path.chmod(FOLDER_MODE)
            if self._owner is not None:
                os.chown(path, *self._owner)
            sync_folder(self._root)

    def delete(self, volume_id: str) -> None:
        """Delete a volume with its files; nothing happens if it is not there."""
        name = self.path(volume_id).name
        with contextlib.suppress(FileNotFoundError), open_folder(self._root, ()) as root:
            self._discard(root, name)
            os.fsync(root)
        self._empty_trash()

    def stat(self, volume_id: str, path: str) -> VolumeEntry:
        root, parts = self._locate(volume_id, path)
        with named_errors(path), open_folder(root, parts[:-1]) as folder:
            return _entry(parts, os.stat(parts[-1] if parts else ".", dir_fd=folder, follow_symlinks=False))

    def listdir(self, volume_id: str, path: str = "", recursive: bool = False) -> list[VolumeEntry]:
        """What is in a folder, by path; of a file, the file itself."""
        root, parts = self._locate(volume_id, path)
        own = self.stat(volume_id, path)
        if own.type != EntryType.DIRECTORY:
            return [own]
        with named_errors(path):
            found = [_entry(place, stat) for place, stat in walk(root, parts, recursive=recursive)]
        return sorted(found, key=lambda entry: entry.path)

    def read(self, volume_id: str, path: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer only at the end of the file."""
        if offset < 0 or length < 0:
            raise InvalidError(f"Cannot read {length} bytes from {offset}: neither may be below 0.")
        root, parts = self._locate(volume_id, path)
        with named_errors(path), open_file(root, parts) as descriptor:
            if not S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidError(f"{path!r} is not a file.")
            return b"".join(_read(descriptor, offset, length))

    def write_from(self, volume_id: str, path: str, source: Path, mode: int = FILE_MODE) -> None:
        """Move the file `source` of the caller to `path`: there at once and whole, and on disk when this
        returns. Folders on the way are made; a file that is there is replaced. `source` is used up."""
        root, parts = self._locate(volume_id, path)
        if not parts:
            raise InvalidError(f"{path!r} names no file.")
        with full_disk_named(root), self._prepared(source, mode) as ready, named_errors(path):
            with make_folders(root, parts[:-1], self._owner) as folder:
                os.rename(ready, parts[-1], dst_dir_fd=folder)
                os.fsync(folder)

    def remove(self, volume_id: str, path: str, recursive: bool = False) -> None:
        """Delete a file or link, or with `recursive` a folder, which is gone at once."""
        root, parts = self._locate(volume_id, path)
        if not parts:
            raise InvalidError("The top of a volume cannot be removed; delete the volume.")
        with named_errors(path), open_folder(root, parts[:-1]) as folder:
            if not S_ISDIR(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(parts[-1], dir_fd=folder)
                return
            if not recursive:
                raise InvalidError(f"{path!r} is a folder; remove it with recursive=True.")
            self._discard(folder, parts[-1])
        self._empty_trash()

    def usage(self, volume_id: str) -> VolumeUsage:
        root, _ = self._locate(volume_id, "")
        blocks: dict[tuple[int, int], int] = {}
        files = 0
        with named_errors(""):
            for _, stat in walk(root, (), recursive=True):
                files += not S_ISDIR(stat.st_mode)
                blocks[stat.st_dev, stat.st_ino] = stat.st_blocks
        return VolumeUsage(files=files, bytes=512 * sum(blocks.values()))

    def _locate(self, volume_id: str, path: str) -> tuple[Path, Parts]:
        root = self.path(volume_id)
        if not root.is_dir():
            raise NotFoundError(f"There is no volume {volume_id}.")
        return root, parts_of(path)

    @contextlib.contextmanager
    def _prepared(self, source: Path, mode: int) -> Iterator[Path]:
        """The file on the volumes' file system with its final owner and mode, on disk. Gone afterwards."""
        ready = source
        try:
            if source.stat().st_dev != self._root.stat().st_dev:
                ready = self.staging / temporary_name()
                shutil.copyfile(source, ready)
            with ready.open("rb") as file:
                os.fchmod(file.fileno(), mode & 0o777)
                give(file.fileno(), self._owner)
                os.fsync(file.fileno())
            yield ready
        finally:
            for left in {source, ready}:
                left.unlink(missing_ok=True)

    def _discard(self, folder: int, name: str) -> None:
        with open_folder(self._trash, ()) as trash:
            move_away(folder, name, trash)

    def _empty_trash(self) -> None:
        """What resists, such as a folder into which a container still writes, is tried again next time."""
        try:
            delete_all(self._trash)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.ENOENT):
                raise
            logger.warning("deleted files of a volume could not all be removed yet: %s", error)


def _entry(parts: Parts, stat: os.stat_result) -> VolumeEntry:
    kinds = ((S_ISREG, EntryType.FILE), (S_ISDIR, EntryType.DIRECTORY), (S_ISLNK, EntryType.SYMLINK))
    kind = next((kind for test, kind in kinds if test(stat.st_mode)), EntryType.OTHER)
    return VolumeEntry(path="/".join(parts), type=kind, size=stat.st_size, mtime=stat.st_mtime)


def _read(descriptor: int, offset: int, length: int) -> Iterator[bytes]:
    while length and (piece := os.pread(descriptor, min(length, PIECE), offset)):
        yield piece
        offset, length = offset + len(piece), length - len(piece)
