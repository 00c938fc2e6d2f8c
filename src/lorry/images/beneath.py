"""Files of an archive put below a folder, and never anywhere else.

Every path is walked component by component from a descriptor of the folder, and no symbolic link is ever followed:
a link in the archive is content, not a way. What `tarfile` knows about safe paths is not relied upon (CVE-2025-4517
and its relatives went through its filter). Standard library only.
"""

from __future__ import annotations

import os
import stat
from typing import IO

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
PIECE = 1 << 20
PERMISSIONS = 0o1777
"""Kept of a mode: no set-user-id and no set-group-id bits."""


class UnsafePath(Exception):
    """A name in an archive that leads out of the folder, or nowhere."""


def parts_of(name: str) -> tuple[str, ...]:
    """Components of an archive's name; a leading slash or ./ is only a way of writing. UnsafePath for `..`."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts or "\0" in name:
        raise UnsafePath(f"{name!r} leads out of the image")
    return parts


class Beneath:
    """Keeps open the folder that was used last: archives list a folder's files one after another."""

    def __init__(self, root: str) -> None:
        self._root = os.open(root, FOLDER)
        self._last: tuple[tuple[str, ...], int] = ((), os.dup(self._root))

    def close(self) -> None:
        os.close(self._last[1])
        os.close(self._root)

    def folder(self, parts: tuple[str, ...]) -> int:
        """A descriptor of the folder, made where missing, valid until the next call. A symbolic link on the way to
        it is one inside the image (`lib` → `usr/lib`): it is resolved within the image, never by the kernel."""
        if parts == self._last[0]:
            return self._last[1]
        descriptor = os.dup(self._root)
        walked: list[tuple[str, int]] = []
        pending, links = list(parts), 0
        try:
            while pending:
                part = pending.pop(0)
                if part == "..":
                    os.close(descriptor)
                    descriptor = walked.pop()[1] if walked else os.dup(self._root)
                    continue
                target = self._link(part, descriptor)
                if target is None:
                    below = self._enter(part, descriptor)
                    walked.append((part, descriptor))
                    descriptor = below
                    continue
                links += 1
                if links > 40:
                    raise UnsafePath(f"{'/'.join(parts)!r} goes through too many symbolic links")
                pending[:0] = [word for word in target.split("/") if word not in ("", ".")]
                if target.startswith("/"):
                    os.close(descriptor)
                    descriptor = self._back_to_root(walked)
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            for _, above in walked:
                os.close(above)
        os.close(self._last[1])
        self._last = (parts, descriptor)
        return descriptor

    def _back_to_root(self, walked: list[tuple[str, int]]) -> int:
        for _, above in walked:
            os.close(above)
        walked.clear()
        return os.dup(self._root)

    @staticmethod
    def _link(part: str, above: int) -> str | None:
        try:
            return os.readlink(part, dir_fd=above)
        except OSError:
            return None

    @staticmethod
    def _enter(part: str, above: int) -> int:
        try:
            return os.open(part, FOLDER, dir_fd=above)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=above)
        except NotADirectoryError:  # a file of a lower layer that an upper one made a folder
            os.unlink(part, dir_fd=above)
            os.mkdir(part, 0o755, dir_fd=above)
        return os.open(part, FOLDER, dir_fd=above)

    def forget(self) -> None:
        """The folder that was used last may be gone."""
        os.close(self._last[1])
        self._last = ((), os.dup(self._root))

    def make_folder(self, parts: tuple[str, ...], mode: int, uid: int, gid: int) -> None:
        if not parts:
            return
        above = self.folder(parts[:-1])
        kept = self._status(parts[-1], above)
        if kept is None or not stat.S_ISDIR(kept.st_mode):
            self.remove(parts)
            above = self.folder(parts[:-1])
            os.mkdir(parts[-1], 0o700, dir_fd=above)
        here = os.open(parts[-1], FOLDER, dir_fd=above)
        try:
            os.fchown(here, uid, gid)
            os.fchmod(here, mode & PERMISSIONS)
        finally:
            os.close(here)

    def make_file(self, parts: tuple[str, ...], content: IO[bytes], mode: int, uid: int, gid: int, time: int) -> None:
        self.remove(parts)
        here = os.open(parts[-1], NEW, 0o600, dir_fd=self.folder(parts[:-1]))
        try:
            while piece := content.read(PIECE):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(here, rest) :]
            os.fchown(here, uid, gid)
            os.fchmod(here, mode & PERMISSIONS)
            os.utime(here, (time, time))
        finally:
            os.close(here)

    def make_link(self, parts: tuple[str, ...], target: str, uid: int, gid: int) -> None:
        self.remove(parts)
        above = self.folder(parts[:-1])
        os.symlink(target, parts[-1], dir_fd=above)
        os.chown(parts[-1], uid, gid, dir_fd=above, follow_symlinks=False)

    def make_hard_link(self, parts: tuple[str, ...], old: tuple[str, ...]) -> None:
        """To a file that is in the image already. UnsafePath if it is not."""
        if parts == old:
            return
        if not old:
            raise UnsafePath("a hard link to the image's root")
        source = os.dup(self.folder(old[:-1]))
        try:
            status = self._status(old[-1], source)
            if status is None or stat.S_ISDIR(status.st_mode):
                raise UnsafePath(f"a hard link to {'/'.join(old)!r}, which is no file of the image")
            self.remove(parts)
            above = self.folder(parts[:-1])
            os.link(old[-1], parts[-1], src_dir_fd=source, dst_dir_fd=above, follow_symlinks=False)
        finally:
            os.close(source)

    def remove(self, parts: tuple[str, ...]) -> None:
        """Whatever is there; nothing is fine."""
        if not parts:
            raise UnsafePath("the image's root cannot be replaced")
        above = self.folder(parts[:-1])
        status = self._status(parts[-1], above)
        if status is None:
            return
        if stat.S_ISDIR(status.st_mode):
            self.empty(parts)
            above = self.folder(parts[:-1])
            os.rmdir(parts[-1], dir_fd=above)
        else:
            os.unlink(parts[-1], dir_fd=above)
            if stat.S_ISLNK(status.st_mode):  # the folder that was used last may have been reached through it
                self.forget()

    def empty(self, parts: tuple[str, ...]) -> None:
        """Removes what a folder holds. A link in the folder's place is not followed."""
        above = self.folder(parts[:-1]) if parts else self._root
        try:
            here = os.open(parts[-1], FOLDER, dir_fd=above) if parts else os.dup(self._root)
        except OSError:  # not there, or no folder
            return
        self.forget()
        _empty(here)

    @staticmethod
    def _status(name: str, above: int) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            return None


def _empty(folder: int) -> None:
    try:
        for name in os.listdir(folder):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                _empty(os.open(name, FOLDER, dir_fd=folder))
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)
