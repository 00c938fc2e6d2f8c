"""Files that appear whole or not at all, and disks that are full."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from lorry.errors import StorageFullError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FILE_MODE = 0o644
FOLDER_MODE = 0o755


@contextlib.contextmanager
def full_disk_named(where: Path) -> Iterator[None]:
    """Turn the OSError of a full disk into StorageFullError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise StorageFullError(
            f"The disk of {where} is full ({error.strerror}). Free space (`lorry prune`) and try again."
        ) from error


def make_folder(path: Path) -> Path:
    """The folder, made with its parents if it is not there; open to containers whatever the umask says."""
    if not path.is_dir():
        make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            path.chmod(FOLDER_MODE)
    return path


def empty_folder(path: Path) -> Path:
    """The folder, without the half-written files that a crash left in it."""
    for leftover in make_folder(path).iterdir():
        leftover.unlink()
    return path


def sync_folder(path: Path) -> None:
    """Make names that were added to or removed from a folder survive power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name() -> str:
    return secrets.token_hex(16)
