"""What a sandbox leaves in its container's folder for this server or the next one.

What a template forks has its files elsewhere: home, tmp, out, err and exit lie where the template can write, and the
container's folder, with what the server believes, has a link to them. Whoever can write there may replace any of them
by something else, so links in there are not followed, and what `exit` says is checked.
"""

from __future__ import annotations

import json
import os
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

from lorry.sandbox.cgroups import Group, NoGroup, open_group
from lorry.sandbox.interface import SIGNAL_BASE, Exit
from lorry.sandbox.limits import is_group_of

OUTPUTS = ("out", "err")
FORKED = "forked"
"""In the folder of a container that a template has forked: its files, moved to the template's pool behind a link."""
LONGEST_RECORD = 256
"""Bytes."""
MOST = 2**53
"""Of KiB and seconds in a record: what every reader of them can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """What the sandbox's first process wrote about its program."""

    code: int
    """Negative: the signal."""
    peak_kib: int
    """Largest resident size of any one process."""
    cpu_seconds: float


def files_of(folder: str) -> str:
    """Where the files of the container with this folder lie."""
    try:
        return os.readlink(f"{folder}/{FORKED}")
    except OSError:
        return folder


def prepare_folder(folder: str, owner: int | None) -> None:
    """Makes what the sandbox needs in the container's folder; `owner` is the uid that the program will
    have."""
    for name in ("home", "tmp", "root"):
        os.mkdir(f"{folder}/{name}", 0o700)
    for name in OUTPUTS:
        os.mkfifo(f"{folder}/{name}", 0o600)
    if owner is not None:
        for name in ("home", "tmp", *OUTPUTS):
            os.chown(f"{folder}/{name}", owner, owner)


def open_outputs(folder: str) -> tuple[int, int]:
    """Of a folder with files. Raises OSError."""
    out = _open_own(folder, OUTPUTS[0], stat.S_IFIFO)
    try:
        return out, _open_own(folder, OUTPUTS[1], stat.S_IFIFO)
    except OSError:
        os.close(out)
        raise


def _open_own(folder: str, name: str, kind: int) -> int:
    """For reading: what was put there, and nothing that somebody has put in its place. Raises OSError."""
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)
    if stat.S_IFMT(os.fstat(fd).st_mode) == kind:
        return fd
    os.close(fd)
    raise OSError(f"{name} in {folder} is not what was put there")


def write_group(folder: str, group: Group) -> None:
    Path(folder, "cgroup").write_text(json.dumps(group.directories))


def read_group(folder: str) -> Group:
    """None that is not this container's own, whatever the record says: all processes of it may be killed."""
    try:
        directories = dict(json.loads(Path(folder, "cgroup").read_text()))
        own = all(is_group_of(Path(path), os.path.basename(folder)) for path in directories.values())
    except (OSError, ValueError, TypeError):
        return NoGroup()
    return open_group(directories) if own else NoGroup()


def read_record(folder: str) -> ExitRecord | None:
    """None: the sandbox has not ended, or was killed as a whole."""
    try:
        fd = _open_own(files_of(folder), "exit", stat.S_IFREG)
    except OSError:
        return None
    try:
        code, peak, cpu = os.read(fd, LONGEST_RECORD).split()
        record = ExitRecord(code=int(code), peak_kib=int(peak), cpu_seconds=float(cpu))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    likely = -64 <= record.code <= 255 and 0 <= record.peak_kib < MOST and 0 <= record.cpu_seconds < MOST
    return record if likely else None


def read_exit(folder: str) -> Exit | None:
    """How the program ended, also when no server was there to see it. None: unknown, as after a kill."""
    record = read_record(folder)
    return None if record is None else make_exit(record.code, oom_kills=0, peak_mib=record.peak_kib >> 10)


def make_exit(code: int, *, oom_kills: int, peak_mib: int) -> Exit:
    """`code` is negative for a signal. One OOM kill in a container that then failed counts as its cause."""
    number = -code if code < 0 else None
    return Exit(
        code=code if number is None else SIGNAL_BASE + number,
        signal=number,
        oom_killed=oom_kills > 0 and code != 0,
        peak_memory=peak_mib,
    )


UNKNOWN_END = -signal.SIGKILL
"""Nothing but a SIGKILL of the whole sandbox keeps its first process from writing its record."""
