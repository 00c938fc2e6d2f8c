"""Checkpoints in a folder, for one run and one attempt at a time.

    HEAD                    the newest committed checkpoint
    TOKEN                   the newest attempt
    LOCK                    flock(2)ed while HEAD or TOKEN moves, and while files are removed
    m/<step>-<sha256>.json  manifests
    chunks/ab/<sha256>      their bytes
    incoming/               what is being written; the next attempt empties it
    bad/                    damaged files, moved aside

A file gets its name when it is on the disk as a whole, and names become durable in the order chunks, manifest, HEAD.
docs/reference/checkpoint-format.md has the details.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from lorry import faults
from lorry.errors import (
    CorruptCheckpointError,
    InvalidError,
    ResourceError,
    StaleAttemptError,
    StorageFullError,
)
from lorry.storage.atomic import FULL_DISK, sync_file, sync_folder, temporary_name
from lorry.train.manifest import Chunk, Head, Manifest
from lorry.wire.codec import from_json, to_json

YOUNG = 3600.0
"""Seconds. Longer than a save takes: what is younger may belong to one that has not been committed yet."""
LOST_TOKENS = 1 << 20
"""When TOKEN is lost, the next is so far above the newest known one that no attempt alive can have the same."""
UNUSABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class LocalStore:
    """A `CheckpointStore` in a folder on a local disk. Nothing is touched before the first verb; `begin` makes it."""

    def __init__(self, folder: Path, wall: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._wall = wall
        self._head, self._newest, self._lock = folder / "HEAD", folder / "TOKEN", folder / "LOCK"
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

    # --- attempts ---------------------------------------------------------------------------------------------

    def begin(self) -> int:
        with self._explained():
            for folder in (self._manifests, self._chunks, self._incoming, self._bad):
                _make_folder(folder)
            with self._locked():
                for leftover in self._incoming.iterdir():  # of one that was killed; a live one is stale from now on
                    leftover.unlink(missing_ok=True)
                self._token = self._last_token() + 1
                self._replace(self._newest, _sealed(str(self._token)))
        self._forget()
        return self._token

    def _last_token(self) -> int:
        with contextlib.suppress(CorruptCheckpointError):
            if self._newest.exists():
                return self._read_token()
        known = [manifest.token for manifest in self._all_manifests()]
        with contextlib.suppress(CorruptCheckpointError):
            head = self.head()
            known += [head.token] if head else []
        return max(known, default=0) + LOST_TOKENS if known or any(self._bad.iterdir()) else 0

    def _read_token(self) -> int:
        return int(self._unsealed(self._newest))

    def _check_attempt(self, token: int) -> None:
        newest = self._read_token()
        if token != newest:
            raise StaleAttemptError(
                f"Attempt {token} of the run in {self._folder} cannot save any more: attempt {newest} has begun."
            )

    # --- saving -----------------------------------------------------------------------------------------------

    def put(self, data: memoryview) -> tuple[Chunk, int]:
        """Writes to a temporary file at once, and asks the kernel to start with the disk; `commit` waits for it."""
        content = data.cast("B") if data.nbytes else memoryview(b"")
        chunk = Chunk(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        with self._explained(), self._abandoned_on_error():
            if chunk.sha256 in self._written or self._found(chunk):
                self._saving.add(chunk.sha256)
                return chunk, 0
            temporary = self._incoming / temporary_name()
            self._written[chunk.sha256] = temporary
            with _new_file(temporary) as descriptor:
                _write(descriptor, content)
                _start_writeback(descriptor)
        self._saving.add(chunk.sha256)
        if faults.armed:
            faults.point("train.chunk_written")
        return chunk, chunk.size

    def _found(self, chunk: Chunk) -> bool:
        """Whether it is there already; if so it is young again, lest a collection remove it before the commit."""
        path = self._chunk_path(chunk.sha256)
        with self._locked(fcntl.LOCK_SH):
            try:
                if path.stat().st_size == chunk.size:
                    os.utime(path)
                    return True
            except FileNotFoundError:
                return False
        self._set_aside(path)
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
            with self._locked():
                self._check_attempt(manifest.token)
                self._check_presence(manifest)
                self._replace(self._manifests / f"{manifest.step}-{head.manifest}.json", content)
                self._added.clear()  # from here on the manifest needs them
                if faults.armed:
                    faults.point("train.manifest_written")
                    faults.point("train.head_swap_before")
                self._replace(self._head, _sealed(to_json(head)))
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
        """A save that the disk failed is over. If it was full, the save takes no room either."""
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

    def _forget(self) -> None:
        self._written.clear()
        self._saving.clear()
        self._added.clear()

    def _take_back(self) -> None:
        """Unless a newer attempt has begun, which may count on these chunks."""
        with self._locked(), contextlib.suppress(CorruptCheckpointError):
            if self._read_token() == self._token:
                for digest in self._added:
                    self._chunk_path(digest).unlink(missing_ok=True)

    # --- reading ----------------------------------------------------------------------------------------------

    def head(self) -> Head | None:
        return from_json(Head, self._unsealed(self._head)) if self._head.exists() else None

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
        """Those that can be read."""
        for path in sorted(self._manifests.glob("*.json")):
            with contextlib.suppress(CorruptCheckpointError):
                yield self._load_manifest(path)

    def read(self, chunk: Chunk) -> bytes:
        return self._verified(self._written.get(chunk.sha256) or self._chunk_path(chunk.sha256), chunk.sha256)

    def _verified(self, path: Path, digest: str) -> bytes:
        content = self._content(path)
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._set_aside(path)
        return content

    def _unsealed(self, path: Path) -> str:
        """The first line of a file whose second is its digest."""
        text, _, digest = self._content(path).partition(b"\n")
        if digest != hashlib.sha256(text).hexdigest().encode() + b"\n":
            raise self._set_aside(path)
        return text.decode()

    def _content(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise CorruptCheckpointError(f"{path} is missing.") from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise self._set_aside(path) from error

    def _set_aside(self, path: Path) -> CorruptCheckpointError:
        """Damaged files stay for whoever wants to look into them. The error to raise."""
        target = self._bad / f"{temporary_name()}-{path.name}"
        try:
            path.rename(target)
        except OSError as error:
            return CorruptCheckpointError(f"{path} is damaged, and cannot be moved aside ({error.strerror}).")
        return CorruptCheckpointError(f"{path} is damaged. It was moved to {target}.")

    # --- collection -------------------------------------------------------------------------------------------

    def collect(self, keep: Collection[str]) -> int:
        """An attempt that is no longer the newest collects nothing: StaleAttemptError. A damaged manifest ends the
        collection before anything is removed, for nobody knows what it needs."""
        with self._explained(), self._locked():
            if self._token:
                self._check_attempt(self._token)
            head = self.head()
            kept = {*keep, *([head.manifest] if head else ())}
            needed, removable = set(self._saving), []
            for path in self._manifests.glob("*.json"):
                if _digest_in(path) in kept or not self._is_old(path):
                    needed |= {chunk.sha256 for chunk in self._load_manifest(path).chunks()}
                else:
                    removable.append(path)
            removable += [path for path in self._chunks.glob("*/*") if path.name not in needed and self._is_old(path)]
            return sum(_removed(path) for path in removable)

    def _is_old(self, path: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):  # moved aside meanwhile
            return self._wall() - path.stat().st_mtime > YOUNG
        return False

    # --- files ------------------------------------------------------------------------------------------------

    def _chunk_path(self, digest: str) -> Path:
        _check_digest(digest)
        return self._chunks / digest[:2] / digest

    def _replace(self, path: Path, content: bytes) -> None:
        """The whole new file or the whole old one, durable."""
        temporary = self._incoming / temporary_name()
        with _new_file(temporary) as descriptor:
            _write(descriptor, memoryview(content))
            os.fsync(descriptor)
        temporary.rename(path)
        sync_folder(path.parent)

    @contextlib.contextmanager
    def _locked(self, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

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
            if error.errno == errno.ENOENT:  # `begin` of another attempt emptied incoming/
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


def _sealed(line: str) -> bytes:
    """Followed by its digest, so that a flipped bit shows."""
    return f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n".encode()


def _removed(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # moved aside meanwhile
        size = path.stat().st_size
        path.unlink()
        return size
    return 0


def _make_folder(folder: Path) -> None:
    """With its parents, and durable."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """Its descriptor. Nothing stays of it after an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _start_writeback(descriptor: int) -> None:
    """On Linux this advice makes the kernel write dirty pages now, without waiting for them: the disk works while the
    next chunk is hashed, and `commit` finds little left to do (measured: 1.1 instead of 0.7 GB/s)."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
