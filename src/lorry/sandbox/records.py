"""What a sandbox leaves in its container's folder for this server or the next one."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorry.sandbox.cgroups import Group, NoGroup, open_group
from lorry.sandbox.interface import SIGNAL_BASE, Exit

OUTPUTS = ("out", "err")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """What the sandbox's first process wrote about its program."""

    code: int
    """Negative: the signal."""
    peak_kib: int
    """Largest resident size of any one process."""
    cpu_seconds: float


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
    out, err = (os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NONBLOCK) for name in OUTPUTS)
    return out, err


def write_group(folder: str, group: Group) -> None:
    Path(folder, "cgroup").write_text(json.dumps(group.directories))


def read_group(folder: str) -> Group:
    try:
        return open_group(json.loads(Path(folder, "cgroup").read_text()))
    except (OSError, ValueError):
        return NoGroup()


def read_record(folder: str) -> ExitRecord | None:
    """None: the sandbox has not ended, or was killed as a whole."""
    with suppress(OSError, ValueError):
        code, peak, cpu = Path(folder, "exit").read_text().split()
        return ExitRecord(code=int(code), peak_kib=int(peak), cpu_seconds=float(cpu))
    return None


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
