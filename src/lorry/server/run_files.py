"""Files of training runs, which code in containers writes and the server reads.

A container owns the folder of its run, and can put a link, a pipe or a terabyte where the server expects a few bytes.
So nothing is followed, nothing is waited for, and of everything at most so much is read as it may have. All of it
blocks: run it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lorry.errors import NotFoundError
from lorry.storage.atomic import make_folder, temporary_name
from lorry.storage.confined import Owner, Parts, delete_all, give, open_file, open_folder
from lorry.wire.codec import from_json, to_json

INNER = "/var/lib/lorry/runs"
"""Where a container finds the runs of its function."""
MOST_PROGRESS = 64 << 10
MOST_INPUT = 1 << 20
"""Bytes of a payload that is kept as it is, and of what describes a larger one."""
PIECE = 1 << 20
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What an attempt says of itself, about once a second."""

    token: int
    step: int
    at: float
    """Its own CLOCK_MONOTONIC at its last step or heartbeat."""
    phase: str
    """"restoring", "training", "saving" or "waiting"."""
    total: int | None = None
    """Steps that the run will have."""
    seconds_per_step: float = 0.0
    q99: float = 0.0
    """Of its steps' seconds, the 99th percentile."""
    yield_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptInput:
    """How the input of a run lies in its folder, beside the bytes themselves."""

    batch: bool
    """It is a list of one input, as a map sends it."""
    reference: bytes | None = None
    """Of a payload with pieces; None: the file is the payload."""


class RunFiles:
    def __init__(self, root: Path, owner: Owner | None) -> None:
        """`owner`: who sandboxes run as, if that is not this user."""
        self._root = make_folder(root)
        self._owner = owner

    # Places

    def of_function(self, app_name: str, tag: str) -> Path:
        """The folder with the runs of a function of apps of this name, made if need be. It is the server's: a container
        finds its runs there and cannot put others in their place."""
        return make_folder(self._root / safe_name(app_name) / safe_name(tag))

    def path(self, folder: str) -> Path:
        return self._root / folder

    def make(self, folder: str) -> None:
        """The folder of a run."""
        path = self.path(folder)
        make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        with open_folder(self._root, _parts(folder)) as descriptor:
            give(descriptor, self._owner)
            os.fsync(descriptor)

    # Reading what a container wrote

    @contextlib.contextmanager
    def opened(self, folder: str, *name: str) -> Iterator[int]:
        """A descriptor of a regular file. FileNotFoundError if it is anything else."""
        try:
            with open_file(self._root, (*_parts(folder), *name)) as descriptor:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise FileNotFoundError(f"{'/'.join(name)} is no file")
                yield descriptor
        except OSError as problem:
            if isinstance(problem, FileNotFoundError):
                raise
            raise FileNotFoundError(f"{'/'.join(name)}: {problem.strerror}") from problem

    def read(self, folder: str, *name: str, most: int) -> bytes:
        """FileNotFoundError for what is no file, or a larger one."""
        with self.opened(folder, *name) as descriptor:
            content = os.pread(descriptor, most + 1, 0)
            while 0 < len(content) <= most and (more := os.pread(descriptor, most + 1 - len(content), len(content))):
                content += more
        if len(content) > most:
            raise FileNotFoundError(f"{'/'.join(name)} has more than {most:,} bytes")
        return content

    def tail(self, folder: str, name: str, most: int) -> bytes:
        """The last bytes of a file; nothing if there is none."""
        with contextlib.suppress(FileNotFoundError), self.opened(folder, name) as descriptor:
            return os.pread(descriptor, most, max(0, os.fstat(descriptor).st_size - most))
        return b""

    def progress(self, folder: str) -> Progress | None:
        """None for none, or for nonsense."""
        try:
            found = from_json(Progress, self.read(folder, "progress.json", most=MOST_PROGRESS))
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return None
        numbers = (found.at, found.seconds_per_step, found.q99, found.yield_at or 0.0)
        sane = all(map(math.isfinite, numbers)) and 0 <= found.step < 2**63 and len(found.phase) < 32
        return found if sane and min(found.q99, found.seconds_per_step) >= 0 and _fits(found.total) else None

    def said_at(self, folder: str) -> float:
        """When an attempt last said something of itself, by the wall clock; 0 if it never has."""
        with contextlib.suppress(FileNotFoundError), self.opened(folder, "progress.json") as descriptor:
            return os.fstat(descriptor).st_mtime
        return 0.0

    # The input, for `lorry runs resume`

    def keep_input(self, folder: str, kept: KeptInput, payload: bytes | Path) -> None:
        """On disk when this returns; what is there already stays. `payload`: a file is linked where that is
        possible."""
        with open_folder(self._root, _parts(folder)) as descriptor:
            if "input.json" in os.listdir(descriptor):
                return
            _put(descriptor, "input", payload)
            _put(descriptor, "input.json", to_json(kept).encode())
            os.fsync(descriptor)

    def kept_input(self, folder: str) -> tuple[KeptInput, bytes | int]:
        """With the payload itself, or a descriptor of its file, which is the caller's. NotFoundError if it is not there
        as it was."""
        try:
            kept = from_json(KeptInput, self.read(folder, "input.json", most=MOST_INPUT))
            if kept.reference is None:
                return kept, self.read(folder, "input", most=MOST_INPUT)
            with self.opened(folder, "input") as descriptor:
                return kept, os.dup(descriptor)
        except (FileNotFoundError, ValueError, TypeError) as damaged:
            raise NotFoundError(f"the input of this run is not kept any more: {damaged}") from damaged

    # Retention

    def folders(self) -> list[str]:
        """Of all runs that there are."""
        return [
            f"{app}/{tag}/{run}"
            for app in os.listdir(self._root)
            for tag in _names(self._root / app)
            for run in _names(self._root / app / tag)
        ]

    def remove(self, folder: str) -> int:
        """Bytes freed."""
        path = self.path(folder)
        freed = self.size(folder)
        if path.is_symlink():  # nobody but a container of a server without root can have done that
            path.unlink(missing_ok=True)
        elif path.is_dir():
            delete_all(path)
            path.rmdir()
        return freed

    def size(self, folder: str = ".") -> int:
        """Bytes on disk."""
        total = 0
        for path, _folders, files in os.walk(self.path(folder)):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(path, name)).st_blocks * 512
        return total


def safe_name(name: str) -> str:
    """A folder's name for the name of an app or a function: itself if it is plain, else something like it with a digest
    behind a dot, which no plain one has."""
    if _PLAIN.fullmatch(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:40]
    return f"{readable}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def folder_of(app_name: str, tag: str, run_id: str) -> str:
    return f"{safe_name(app_name)}/{safe_name(tag)}/{run_id}"


def _parts(folder: str) -> Parts:
    return tuple(folder.split("/"))


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(NotADirectoryError, FileNotFoundError):
        return os.listdir(folder)
    return []


def _fits(number: int | None) -> bool:
    return number is None or 0 <= number < 2**63


def _put(folder: int, name: str, content: bytes | Path) -> None:
    temporary = temporary_name()
    try:
        if isinstance(content, Path):
            _link(content, temporary, folder)
        else:
            _write(folder, temporary, io.BytesIO(content))
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:  # the disk was full, or `name` is a link to the same file already: then rename(2) leaves both
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _link(source: Path, name: str, folder: int) -> None:
    """Runs may lie on a disk of their own: then the bytes are copied."""
    try:
        os.link(source, name, dst_dir_fd=folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with source.open("rb") as content:
            _write(folder, name, content)


def _write(folder: int, name: str, content: BinaryIO) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(descriptor)
