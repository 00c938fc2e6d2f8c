"""Facts about processes from /proc. On systems without it every answer is "unknown"."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStat:
    pid: int
    state: str
    parent: int
    cpu_seconds: float
    """Its own and that of children it has waited for."""
    started: int
    """Clock ticks since boot."""
    resident: int
    """Bytes, shared pages included."""

    @property
    def ended(self) -> bool:
        return self.state in "ZX"


def read_stat(pid: int) -> ProcessStat | None:
    """None: no such process, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return None
    # The name is in parentheses and may hold anything, spaces and parentheses included.
    fields = line[line.rindex(b")") + 2 :].split()
    return ProcessStat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        cpu_seconds=sum(map(int, fields[11:15])) / TICKS,
        started=int(fields[19]),
        resident=int(fields[21]) * PAGE,
    )


def start_of(pid: int) -> int:
    """Start of a process in clock ticks since boot; 0 if unknown."""
    stat = read_stat(pid)
    return stat.started if stat else 0


def is_running(pid: int, started: int) -> bool:
    """Whether this very process still runs; `started` is what `start_of` said of it."""
    stat = read_stat(pid)
    if stat is not None:
        return not stat.ended and stat.started == started
    if sys.platform == "linux":
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _everyone() -> Iterator[ProcessStat]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit() and (stat := read_stat(int(name))):
            yield stat


def family(pid: int) -> list[ProcessStat]:
    """The process and all its living descendants, parents before children."""
    children: dict[int, list[ProcessStat]] = {}
    for stat in _everyone():
        children.setdefault(stat.parent, []).append(stat)
    first = read_stat(pid)
    found = [first] if first and not first.ended else []
    for member in found:
        found += (child for child in children.get(member.pid, ()) if not child.ended)
    return found


def proportional_memory(stat: ProcessStat) -> int:
    """Bytes; pages that forks share are divided among them, where the kernel lets this process look."""
    try:
        with open(f"/proc/{stat.pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return stat.resident


def total_memory_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * PAGE >> 20
