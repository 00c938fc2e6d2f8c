"""What is done with files of a sandbox, from within it: as its user, under its limits, in its own root. Nothing of the
sandbox's programs is needed for it, and no link in there can lead anywhere else.

Part of the program that joins a sandbox (see `enter`). Content goes through stdin and stdout. A failure is its errno
and its text on stderr, and exit code 1.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

PIECE = 1 << 16
EINVAL = 22
KINDS = {stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFREG: "file"}
WRITE = {
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
}


def perform(verb: str, path: str, option: str) -> NoReturn:
    """`read`, `write` (option: w, x or a), `list`, `mkdir` (option: p for parents), `remove` (option: r for trees)."""
    try:
        VERBS[verb](path, option)
    except Exception as e:
        number, text = getattr(e, "errno", 0) or 0, getattr(e, "strerror", "") or repr(e)
        os.write(2, f"{number} {text}: {getattr(e, 'filename', '') or path}".encode(errors="replace"))
        os._exit(1)
    os._exit(0)


def copy(source: int, target: int) -> None:
    while piece := os.read(source, PIECE):
        while piece:
            piece = piece[os.write(target, piece) :]


def open_file(path: str, flags: int) -> int:
    """Programs in here may have put a pipe there, which never opens, or a device, which never ends."""
    fd = os.open(path, flags | os.O_NONBLOCK, 0o644)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(EINVAL, "It is no file but a device or a pipe", path)
    return fd


def read(path: str, _option: str) -> None:
    copy(open_file(path, os.O_RDONLY), 1)


def write(path: str, option: str) -> None:
    copy(0, open_file(path, WRITE[option]))


def list_folder(path: str, _option: str) -> None:
    """For each entry kind, size, time and name, ended by a NUL: the one character that no name has."""
    data = b""
    for name in sorted(os.listdir(path)):
        try:
            found = os.lstat(os.path.join(path, name))
        except FileNotFoundError:  # removed meanwhile
            continue
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "other")
        data += f"{kind} {found.st_size} {found.st_mtime} ".encode() + os.fsencode(name) + b"\0"
    while data:
        data = data[os.write(1, data) :]


def make_folder(path: str, option: str) -> None:
    if option == "p":
        os.makedirs(path, exist_ok=True)
    else:
        os.mkdir(path)


def remove(path: str, option: str) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    if option == "r":
        for name in os.listdir(path):
            remove(os.path.join(path, name), option)
    os.rmdir(path)


VERBS = {"read": read, "write": write, "list": list_folder, "mkdir": make_folder, "remove": remove}
