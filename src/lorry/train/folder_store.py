"""The files of a run's checkpoints, in a folder, for one attempt at a time. Which one is the newest is with `Heads`.

    LOCK                    flock(2)ed while a checkpoint is committed, and while files are removed
    m/<step>-<sha256>.json  manifests
    chunks/ab/<sha256>      their bytes
    incoming/<token>/       what is being written. There is one, that of the newest attempt: an older one cannot write
    bad/                    damaged files, moved aside

A file gets its name when it is on the disk as a whole, and names become durable in the order chunks, manifest, head.
docs/reference/checkpoint-format.md has the details.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lorry import faults
from lorry.errors import (
    CorruptCheckpointError,
    Error,
    InvalidError,
    ResourceError,
    StaleAttemptError,
    StorageFullError,
)
from lorry.storage.atomic import FULL_DISK, sync_file, sync_folder, temporary_name
from lorry.train import files
from lorry.train.heads import Heads
from lorry.train.lock import locked
from lorry.train.manifest import Chunk, Head, Manifest
from lorry.wire.codec import from_json, to_json

YOUNG = 3600.0
"""Seconds. Files of unknown origin stay for so long: they may belong to a save that has not been committed yet."""
UNUSABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class FolderStore:
    """A `CheckpointStore` in a folder on a local disk. Nothing is touched before the first verb; `begin` makes it."""

    def __init__(self, folder: Path, heads: Heads, wall: Callable[[], float] = time.time) -> None:
        self._folder, self._heads, self._wall = folder, heads, wall
        self._lock = folder / "LOCK"
        self._manifests, self._chunks = folder / "m", folder / "chunks"
        self._incoming, self._bad = folder / "incoming", folder / "bad"
        self._token = 0
        self._written: dict[str, Path] = {}
        """Chunks of the save under way, still under a temporary name."""
        self._saving: set[str] = set()
        """All its chunks, those that were there before included: not for collection."""
        self._added: set[str] = set()
        """Those that it brought to disk: of no use if it fails."""
        self._durable: set[str] = set()
        """Chunks whose names this object has seen durable."""
        self._own: set[Path] = set()
        """Chunks and manifests that this attempt brought to disk: nobody else is about to commit them."""
        self._needs: dict[str, frozenset[str]] = {}
        """Chunks of the manifests that a collection has read."""

    # --- attempts ---------------------------------------------------------------------------------------------

    def begin(self) -> int:
        with self._explained():
            for folder in (self._manifests, self._chunks, self._incoming, self._bad):
                files.make_folder(folder)
            with locked(self._lock):
                self._token = self._heads.begin()
                self._take_over()
        self._forget()
        self._own.clear()
        return self._token

    @property
    def _desk(self) -> Path:
        return self._incoming / str(self._token)

    def _take_over(self) -> None:
        """From here on no attempt of before can write or remove a file here."""
        newest = self._newest_here()
        if newest > self._token:
            raise self._stale(newest)
        for leftover in self._incoming.iterdir():
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        self._desk.mkdir()

    def _newest_here(self) -> int:
        return max((int(path.name) for path in self._incoming.iterdir() if path.name.isdecimal()), default=0)

    def _check_attempt(self, token: int) -> None:
        """While the lock is held."""
        if token != self._token or not self._desk.is_dir():
            raise self._stale(self._newest_here())

    def _stale(self, newest: int) -> StaleAttemptError:
        return StaleAttemptError(
            f"Attempt {self._token} of the run in {self._folder} cannot save any more: attempt {newest} has begun."
        )

    # --- saving -----------------------------------------------------------------------------------------------

    def put(self, data: memoryview, sha256: str | None = None) -> tuple[Chunk, int]:
        """Writes to a temporary file at once, and asks the kernel to start with the disk; `commit` waits for it."""
        content = data.cast("B") if data.nbytes else memoryview(b"")
        chunk = Chunk(sha256=sha256 or hashlib.sha256(content).hexdigest(), size=len(content))
        with self._explained(), self._abandoned_on_error():
            if chunk.sha256 in self._written or self._found(chunk):
                self._saving.add(chunk.sha256)
                return chunk, 0
            temporary = self._desk / temporary_name()
            self._written[chunk.sha256] = temporary
            with files.new_file(temporary) as descriptor:
                files.write(descriptor, content[files.write_directly(descriptor, content) :])
                files.start_writeback(descriptor)
        self._saving.add(chunk.sha256)
        if faults.armed:
            faults.point("train.chunk_written")
        return chunk, chunk.size

    def _found(self, chunk: Chunk) -> bool:
        """Whether it is there already; if so it is young again, lest a collection remove it before the commit."""
        path = self._chunk_path(chunk.sha256)
        if not path.exists():
            return False
        with locked(self._lock, fcntl.LOCK_SH):
            try:
                if path.stat().st_size == chunk.size:
                    os.utime(path)
                    return True
            except FileNotFoundError:
                return False
        files.set_aside(path, self._bad)
        return False

    def _settle(self) -> None:
        """Chunks on disk under their names, and the names durable."""
        unsure = {*self._written, *(self._saving - self._durable)}
        for temporary in self._written.values():
            sync_file(temporary)
        for digest, temporary in self._written.items():
            path = self._chunk_path(digest)
            path.parent.mkdir(exist_ok=True)
            temporary.rename(path)
            self._added.add(digest)
            self._own.add(path)
            if faults.armed:
                faults.point("train.chunk_renamed")
        self._written.clear()
        for folder in {self._chunk_path(digest).parent for digest in unsure}:
            sync_folder(folder)
        sync_folder(self._chunks)
        self._durable |= unsure

    def commit(self, manifest: Manifest) -> Head:
        content = to_json(manifest).encode()
        head = Head(manifest=hashlib.sha256(content).hexdigest(), step=manifest.step, token=manifest.token)
        with self._explained(), self._abandoned_on_error():
            self._settle()
            with locked(self._lock):
                self._check_attempt(manifest.token)
                self._check_presence(manifest)
                target = self._manifests / f"{manifest.step}-{head.manifest}.json"
                files.replace(target, content, self._desk / temporary_name())
                self._added.clear()  # from here on the manifest needs them
                self._own.add(target)
                if faults.armed:
                    faults.point("train.manifest_written")
                    faults.point("train.head_swap_before")
                self._heads.commit(head)
                if faults.armed:
                    faults.point("train.head_swap_after")
        self._forget()
        return head

    def _check_presence(self, manifest: Manifest) -> None:
        """Another process may have collected or moved a chunk aside since `put` found it."""
        for chunk in manifest.chunks():
            path = self._chunk_path(chunk.sha256)
            if not path.exists() or path.stat().st_size != chunk.size:
                self._durable.discard(chunk.sha256)
                raise CorruptCheckpointError(
                    f"Step {manifest.step} was not committed: its chunk {path} is missing. Save again."
                )

    @contextlib.contextmanager
    def _abandoned_on_error(self) -> Iterator[None]:
        """A save that failed is over. If the disk was full, it takes no room either."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                for temporary in self._written.values():
                    temporary.unlink(missing_ok=True)
                if error.errno in FULL_DISK:
                    self._take_back()
            self._forget()
            raise
        except Error:
            self._forget()
            raise

    def _forget(self) -> None:
        self._written.clear()
        self._saving.clear()
        self._added.clear()

    def _take_back(self) -> None:
        """Unless a newer attempt has begun, which may count on these chunks."""
        with locked(self._lock):
            if self._desk.is_dir():
                for digest in self._added:
                    self._chunk_path(digest).unlink(missing_ok=True)

    # --- reading ----------------------------------------------------------------------------------------------

    def head(self) -> Head | None:
        return self._heads.head()

    def history(self) -> Iterator[str]:
        tried: set[str] = set()
        with contextlib.suppress(CorruptCheckpointError):
            head = self.head()
            following = head.manifest if head else None
            while following is not None and following not in tried:
                tried.add(following)
                yield following
                following = self.manifest(following).parent
        rest = sorted(self._all_manifests(), key=lambda manifest: (manifest.token, manifest.step), reverse=True)
        yield from (manifest.id for manifest in rest if manifest.id not in tried)
        if not tried and not rest and self._lost():
            raise CorruptCheckpointError(
                f"Every checkpoint in {self._folder} is lost; {self._bad} has what is left of them. "
                "To start over, remove the folder."
            )

    def _lost(self) -> bool:
        return any(path.name.endswith(("HEAD", ".json")) for path in self._bad.glob("*"))

    def tokens(self) -> list[int]:
        """Of all manifests that can be read."""
        return [manifest.token for manifest in self._all_manifests()]

    def manifest(self, manifest_id: str) -> Manifest:
        _check_digest(manifest_id)
        for path in self._manifests.glob(f"*-{manifest_id}.json"):
            return self._load_manifest(path)
        raise CorruptCheckpointError(f"The manifest {manifest_id} is missing in {self._manifests}.")

    def _load_manifest(self, path: Path) -> Manifest:
        content = self._verified(path, _digest_in(path))
        try:
            return from_json(Manifest, content)
        except (ValueError, TypeError) as error:
            raise CorruptCheckpointError(f"{path} is whole, but of a form that this version cannot read.") from error

    def _all_manifests(self) -> Iterator[Manifest]:
        for path in sorted(self._manifests.glob("*.json")):
            with contextlib.suppress(CorruptCheckpointError):
                yield self._load_manifest(path)

    def read(self, chunk: Chunk, memory: memoryview) -> None:
        path = self._written.get(chunk.sha256) or self._chunk_path(chunk.sha256)
        if files.fill(path, memory, self._bad) != chunk.size or hashlib.sha256(memory).hexdigest() != chunk.sha256:
            raise files.set_aside(path, self._bad)

    def _verified(self, path: Path, digest: str) -> bytes:
        content = files.content(path, self._bad)
        if hashlib.sha256(content).hexdigest() != digest:
            raise files.set_aside(path, self._bad)
        return content

    # --- collection -------------------------------------------------------------------------------------------

    def collect(self, keep: Collection[str], *, sweep: bool = True) -> int:
        """An attempt that is no longer the newest collects nothing: StaleAttemptError. A damaged manifest ends the
        collection before anything is removed, for nobody knows what it needs."""
        with self._explained(), locked(self._lock):
            if self._token:
                self._check_attempt(self._token)
            head = self.head()
            kept = {*keep, *([head.manifest] if head else ())}
            needed, removable = set(self._saving), []
            for path in self._manifests.glob("*.json"):
                if _digest_in(path) in kept or not self._is_for_nobody(path, sweep):
                    needed |= self._chunks_of(path)
                else:
                    removable.append(path)
            chunks = self._chunks.glob("*/*") if sweep else iter([path for path in self._own if not path.suffix])
            removable += [path for path in chunks if path.name not in needed and self._is_for_nobody(path, sweep)]
            self._own.difference_update(removable)
            return sum(files.removed(path) for path in removable)

    def _is_for_nobody(self, path: Path, sweep: bool) -> bool:
        """Whether no attempt can be about to commit it: it is ours, or it is old."""
        if path in self._own or not sweep:
            return path in self._own
        with contextlib.suppress(FileNotFoundError):  # moved aside meanwhile
            return self._wall() - path.stat().st_mtime > YOUNG
        return False

    def _chunks_of(self, path: Path) -> frozenset[str]:
        digest = _digest_in(path)
        if digest not in self._needs:
            self._needs[digest] = frozenset(chunk.sha256 for chunk in self._load_manifest(path).chunks())
        return self._needs[digest]

    # --- errors -----------------------------------------------------------------------------------------------

    def _chunk_path(self, digest: str) -> Path:
        _check_digest(digest)
        return self._chunks / digest[:2] / digest

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL_DISK:
                raise StorageFullError(
                    f"The disk of {self._folder} is full ({error.strerror}). This checkpoint was not saved; the one "
                    "before it is as it was. Free space: the next save tries again."
                ) from error
            if error.errno in UNUSABLE:
                raise ResourceError(
                    f"{self._folder} cannot hold checkpoints ({error.strerror}: {error.filename}). Name another "
                    "folder: lorry.run(folder=…), or LORRY_RUN_DIR."
                ) from error
            if error.errno == errno.ENOENT:  # `begin` of another attempt removed our incoming/<token>
                raise StaleAttemptError(
                    f"{error.filename} is gone: a newer attempt of the run in {self._folder} has begun, or "
                    "somebody removed the folder."
                ) from error
            raise


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InvalidError(f"{digest!r} is not a SHA-256 digest (64 lower-case hex digits).")


def _digest_in(manifest: Path) -> str:
    return manifest.stem.rpartition("-")[2]
