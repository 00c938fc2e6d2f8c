"""Walking paths that somebody else can change meanwhile, without ever leaving the folder they start from.

A container owns its volume and can swap a folder for a symbolic link between any two calls of the server.
So nothing here looks at a path and then uses it: each component is opened relative to the one before, and
links are refused by the kernel in that same call.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR

from lorry.errors import InvalidError, NotFoundError
from lorry.storage.atomic import FOLDER_MODE

Parts = tuple[str, ...]
Owner = tuple[int, int]
"""(uid, gid)."""

MAX_DEPTH = 256
"""Folders inside folders that a walk follows: each is opened from the top, so that one costs its depth."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A fifo must not block the server and a terminal must not become its own.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_USERS_FAULT = (
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ENXIO,  # a socket or an unread fifo, opened
)


def parts_of(path: str) -> Parts:
    """`/a//./b` → ("a", "b"). InvalidError for `..` and for what no file can be called."""
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidError(f"{path!r} cannot be the name of a file.") from None
    if ".." in parts or "\0" in path:
        raise InvalidError(f"{path!r} is not a path inside the volume (no `..`, no NUL).")
    return parts


@contextlib.contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Turn the errors that a path can cause into NotFoundError and InvalidError."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no {path!r} in the volume.") from error
    except OSError as error:
        if error.errno not in _USERS_FAULT:
            raise
        raise InvalidError(f"{path!r}: {error.strerror} (symbolic links are not followed).") from error


@contextlib.contextmanager
def open_folder(root: Path, parts: Parts) -> Iterator[int]:
    """A descriptor of the folder `parts` below `root`."""
    folder = os.open(root, _FOLDER)
    try:
        for part in parts:
            folder = _descend(folder, part)
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def make_folders(root: Path, parts: Parts, owner: Owner | None) -> Iterator[int]:
    """As `open_folder`; folders that are missing are made and given to `owner`."""
    folder = os.open(root, _FOLDER)
    try:
        for part in parts:
            made = _make(folder, part)
            folder = _descend(folder, part)
            if made:
                os.fchmod(folder, FOLDER_MODE)
                give(folder, owner)
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def open_file(root: Path, parts: Parts) -> Iterator[int]:
    """A descriptor of whatever is not a link at `parts`; the caller looks at its type with fstat."""
    with open_folder(root, parts[:-1]) as folder:
        descriptor = os.open(parts[-1] if parts else ".", _FILE, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def give(descriptor: int, owner: Owner | None) -> None:
    if owner is not None:
        os.fchown(descriptor, *owner)


def walk(root: Path, start: Parts, *, recursive: bool) -> Iterator[tuple[Parts, os.stat_result]]:
    """Everything in a folder, with its lstat. What vanishes during the walk is left out."""
    pending = [start]
    while pending:
        parts = pending.pop()
        if len(parts) > MAX_DEPTH:
            raise InvalidError(f"{'/'.join(parts[:3])}/… nests more than {MAX_DEPTH} folders.")
        try:
            with open_folder(root, parts) as folder:
                found = list(_entries(folder))
        except (FileNotFoundError, NotADirectoryError):
            if parts == start:
                raise
            continue
        for name, stat in found:
            yield (*parts, name), stat
            if recursive and S_ISDIR(stat.st_mode):
                pending.append((*parts, name))


def move_away(folder: int, name: str, target: int) -> str:
    """Move a folder into the folder `target`; its name there.

    It gets the write permission that its owner may have taken away: the kernel asks for it, as `..` changes.
    """
    below = os.open(name, _FOLDER, dir_fd=folder)
    try:
        os.fchmod(below, 0o700)
    finally:
        os.close(below)
    new_name = os.urandom(16).hex()
    os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=target)
    return new_name


def delete_all(folder: Path) -> None:
    """Delete what is in `folder`, however deep.

    A container may nest more folders than there are descriptors: each is first moved up to `folder` itself.
    """
    with open_folder(folder, ()) as top:
        pending = os.listdir(top)
        while pending:
            pending += _delete_one(top, pending.pop())


def _delete_one(top: int, name: str) -> list[str]:
    """Delete one entry of `top`; the new names, in `top`, of the folders that were in it."""
    if not S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return []
    moved = []
    folder = os.open(name, _FOLDER, dir_fd=top)
    try:
        os.fchmod(folder, 0o700)
        for child, stat in _entries(folder):
            if S_ISDIR(stat.st_mode):
                moved.append(move_away(folder, child, top))
            else:
                os.unlink(child, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)
    return moved


def _entries(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in sorted(os.listdir(folder)):
        with contextlib.suppress(FileNotFoundError):
            yield name, os.stat(name, dir_fd=folder, follow_symlinks=False)


def _descend(folder: int, part: str) -> int:
    """Trade a folder's descriptor for that of one in it. On an error the caller still has the old one."""
    below = os.open(part, _FOLDER, dir_fd=folder)
    os.close(folder)
    return below


def _make(folder: int, part: str) -> bool:
    try:
        os.mkdir(part, FOLDER_MODE, dir_fd=folder)
    except FileExistsError:
        return False
    return True
