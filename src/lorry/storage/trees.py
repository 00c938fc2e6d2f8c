"""Directory trees made of blobs: the source folder that a function's containers see, once per content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from lorry.errors import InvalidError, NotFoundError
from lorry.storage.atomic import (
    FILE_MODE,
    full_disk_named,
    make_folder,
    sync_file,
    sync_folder,
    temporary_name,
)
from lorry.storage.blobs import BlobStore

Manifest = Sequence[tuple[str, str, int]]
"""(path relative to the tree, digest of the content, permission bits) of each file."""

READ_ONLY_FOLDER = 0o555
_TEMPORARY = ".building-"


class TreeStore:
    """One owner per folder, on the file system of the blobs, else each file is a copy.

    Files with mode 0644 are hard links to their blobs: whoever could write to one would change every tree
    that holds it, so a container gets a tree through a read-only mount only.
    """

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        self._root = make_folder(root)
        self._blobs = blobs
        for leftover in root.glob(f"{_TEMPORARY}*"):
            _remove(leftover)

    def ensure(self, manifest: Manifest) -> Path:
        """The tree of a manifest, built if it is not there. Its folder's name is the manifest's digest.

        Raises InvalidError for a manifest that is no tree and NotFoundError for a blob that is not here.
        """
        files = checked(manifest)
        target = self._root / digest_of(files)
        if target.is_dir():
            return target
        building = self._root / f"{_TEMPORARY}{temporary_name()}"
        try:
            with full_disk_named(target):
                self._build(building, files)
                self._publish(building, target)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise InvalidError("The manifest has a path that is too long for the state folder.") from error
        finally:
            _remove(building)
        return target

    def collect(self, keep: set[str]) -> int:
        """Delete the trees whose digest is not in `keep`; how many went."""
        doomed = [path for path in self._root.iterdir() if path.name not in keep and path.name[0] != "."]
        for path in doomed:
            # Out of sight first: a tree that is half deleted must not be found by `ensure`.
            hidden = path.rename(self._root / f"{_TEMPORARY}{temporary_name()}")
            _remove(hidden)
        return len(doomed)

    def _build(self, folder: Path, files: Manifest) -> None:
        folder.mkdir()
        folders = {folder / parent for path, _, _ in files for parent in PurePosixPath(path).parents}
        for made in sorted(folders):  # parents sort before what they hold
            made.mkdir(exist_ok=True)
        for path, digest, mode in files:
            self._place(folder / path, digest, mode)
        for made in sorted({*folders, folder}, reverse=True):
            made.chmod(READ_ONLY_FOLDER)
            sync_folder(made)

    def _place(self, path: Path, digest: str, mode: int) -> None:
        blob = self._blobs.path(digest)
        try:
            if mode == FILE_MODE:
                with contextlib.suppress(OSError):  # another file system, or too many links: copy
                    os.link(blob, path)
                    return
            shutil.copyfile(blob, path)
        except FileNotFoundError:
            raise NotFoundError(f"There is no blob {digest} for {path.name}; upload it first.") from None
        path.chmod(mode)
        sync_file(path)

    def _publish(self, building: Path, target: Path) -> None:
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            return  # somebody else was faster with the same tree
        sync_folder(self._root)


def digest_of(manifest: Manifest) -> str:
    """SHA-256 of the manifest's files in order of path: the name of its tree."""
    return hashlib.sha256(json.dumps(sorted(manifest)).encode()).hexdigest()


def checked(manifest: Iterable[tuple[str, str, int]]) -> Manifest:
    """The manifest, if it is a tree of plain relative paths; else InvalidError."""
    files = [(path, digest, mode & 0o777) for path, digest, mode in manifest]
    known: set[str] = set()
    for path, _, _ in files:
        _check_path(path)
        if path in known:
            raise InvalidError(f"The manifest names {path!r} twice.")
        known.add(path)
    for path in known:
        for parent in PurePosixPath(path).parents:
            if str(parent) in known:
                raise InvalidError(f"The manifest has {str(parent)!r} as a file and as the folder of {path!r}.")
    return files


def _check_path(path: str) -> None:
    parts = path.split("/")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidError(f"{path!r} cannot be the name of a file.") from None
    if "\0" in path or not {"", ".", ".."}.isdisjoint(parts):
        raise InvalidError(f"{path!r} is not a plain relative path (no empty part, no `.`, `..` or NUL).")


def _remove(folder: Path) -> None:
    """Delete a tree if it is there. Its folders are made writable first: without that only root could."""
    if folder.is_dir():
        for made, _, _ in os.walk(folder):
            Path(made).chmod(0o700)
        shutil.rmtree(folder)
