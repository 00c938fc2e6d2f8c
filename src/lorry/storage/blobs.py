"""Content-addressed files: source code, image files, large payloads. A name is the SHA-256 of its content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from lorry.errors import InvalidError
from lorry.storage.atomic import (
    FILE_MODE,
    empty_folder,
    full_disk_named,
    make_folder,
    sync_folder,
    temporary_name,
)

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What a collection deleted. Bytes are sizes of files; a hard link elsewhere keeps its own alive."""

    files: int = 0
    bytes: int = 0


class BlobStore:
    """One owner per folder: opening it removes what an earlier owner left half written.

    A blob's *access* time is set to now whenever a client is told that it need not be sent, so that `collect`
    does not delete it before it is used. Its modification time never changes: trees are hard links, and
    Python takes a changed one for changed source.
    """

    def __init__(self, root: Path) -> None:
        self._root = make_folder(root)
        self._incoming = empty_folder(root / "incoming")

    def path(self, digest: str) -> Path:
        """Where a blob lies or would lie. InvalidError if `digest` is not 64 lower-case hex digits."""
        if not _DIGEST.fullmatch(digest):
            raise InvalidError(f"{digest!r} is not a SHA-256 digest (64 lower-case hex digits).")
        return self._root / digest[:2] / digest

    def has(self, digest: str) -> bool:
        try:
            _touch(self.path(digest))
        except FileNotFoundError:
            return False
        return True

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that a client has to send, each once, in the order given."""
        return [digest for digest in dict.fromkeys(digests) if not self.has(digest)]

    def writer(self) -> BlobWriter:
        """For content that arrives in pieces; use it in a `with` block."""
        return BlobWriter(self, self._incoming / temporary_name())

    def collect(self, keep: set[str], older_than: float) -> Freed:
        """Delete blobs outside `keep` that nobody has asked for since `older_than` (Unix seconds).

        The margin covers a client that was just told what is missing and has not yet named the rest.
        """
        files = freed = 0
        for path, stat in self._scan():
            if path.name not in keep and max(stat.st_atime, stat.st_mtime) < older_than:
                path.unlink(missing_ok=True)
                files, freed = files + 1, freed + stat.st_size
        return Freed(files=files, bytes=freed)

    def _scan(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder in sorted(self._root.iterdir()):
            if folder != self._incoming:
                for path in sorted(folder.iterdir()):
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        yield path, path.stat()


class BlobWriter:
    """Takes a blob in pieces. Without `commit` nothing of it stays."""

    def __init__(self, blobs: BlobStore, temporary: Path) -> None:
        self._blobs = blobs
        self._temporary = temporary
        self._hash = hashlib.sha256()
        self._size = 0
        with full_disk_named(temporary):
            self._file: BinaryIO = temporary.open("xb", buffering=0)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data).cast("B")
        self._hash.update(rest)
        self._size += len(rest)
        with full_disk_named(self._temporary):
            while rest:
                rest = rest[self._file.write(rest) :]

    def commit(self, expected: str | None = None) -> str:
        """Keep it, on disk when this returns. Its digest; InvalidError if another was `expected`."""
        digest = self._hash.hexdigest()
        if expected is not None and expected != digest:
            self.abort()
            raise InvalidError(f"The upload of {expected} arrived damaged (its digest is {digest}). Send it again.")
        path = self._blobs.path(digest)
        with full_disk_named(path):
            os.fchmod(self._file.fileno(), FILE_MODE)
            os.fsync(self._file.fileno())
            self._file.close()
            make_folder(path.parent)
            self._temporary.rename(path)
            sync_folder(path.parent)
            sync_folder(path.parent.parent)  # the two-digit folder itself may be new
        return digest

    def abort(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _touch(path: Path) -> None:
    """Set the access time to now, explicitly: file systems mounted with noatime never do it themselves."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
