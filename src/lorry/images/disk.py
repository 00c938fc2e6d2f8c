"""What the builder does to files: permissions, sizes, durability, removal. Blocking; run in a thread."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def seal(folder: Path) -> int:
    """Makes everything readable for every uid (containers run under another one); the size in bytes.

    A mode belongs to the inode, which the uv cache shares: the mode changes there too, contents never do.
    """
    folder.chmod(0o755)
    size = 0
    for entry in _walk(folder):
        status = entry.stat(follow_symlinks=False)
        size += status.st_blocks * 512
        if stat.S_ISLNK(status.st_mode):
            continue
        executable = stat.S_ISDIR(status.st_mode) or status.st_mode & 0o100
        mode = 0o755 if executable else 0o644
        if stat.S_IMODE(status.st_mode) != mode:
            os.chmod(entry.path, mode)
    return size


def disk_use(*folders: Path) -> int:
    """Bytes on disk, each file once however many hard links it has, vanishing files not at all."""
    seen: set[int] = set()
    total = 0
    for folder in folders:
        for entry in _walk(folder):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                total += status.st_blocks * 512
    return total


def sync_file_system(folder: Path) -> None:
    """Everything written so far survives a power cut. An fsync for each of 30,000 files takes minutes."""
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except AttributeError:  # macOS
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def replace_durably(path: Path, content: bytes) -> None:
    """All of `content` or the old file, even after a power cut."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Removes `folder` as far as it can: an orphan of a killed server may still write into it; the next sweep
    takes the rest."""

    def unlock_and_retry(remove: Callable[[str], object], path: str, _: object) -> None:
        try:
            os.chmod(os.path.dirname(path), 0o700)
            if remove in (os.open, os.scandir, os.listdir, os.lstat):  # it could not be entered, as overlayfs's work/
                os.chmod(path, 0o700)
                shutil.rmtree(path, ignore_errors=True)
            else:
                remove(path)
        except OSError:
            return

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=unlock_and_retry)
    else:
        shutil.rmtree(folder, onerror=unlock_and_retry)


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Every entry below `folder`, symbolic links not followed."""
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except FileNotFoundError:
            continue
