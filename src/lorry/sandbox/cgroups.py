"""Limits by control groups: version 2, version 1, or none. What works is found by trying, not by looking at
versions.

Every container has a group of its own below the server's own group, in a folder `lorry`: inside one group the
kernel picks the victim of a full memory as it likes. The launcher joins it before it does anything else.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from lorry.sandbox.interface import SandboxSpec
from lorry.sandbox.procfs import family, proportional_memory

UNIFIED = "unified"
OWN_PROCESSES = 2
"""Counted against pids_limit but not the program's: the sandbox's first process, and the launcher before it
ends."""
KILL_ROUNDS = 100
REMOVE_ROUNDS, REMOVE_PAUSE = 100, 0.01
"""A control group can stay busy for a moment after its last process has ended."""
PERIOD_US = 100_000


class Group(Protocol):
    """The control group of one container."""

    @property
    def directories(self) -> dict[str, str]:
        """Controller → directory, for `open_group` in another process."""
        ...

    @property
    def joins(self) -> list[str]:
        """The files that the launcher writes itself into."""
        ...

    @property
    def clone_into(self) -> str:
        """The directory that the launcher forks into; empty if it joins instead."""
        ...

    def oom_kills(self) -> int: ...

    def peak(self) -> int:
        """Bytes, the kernel's own maximum, page cache included; 0 if unknown."""
        ...

    def usage(self, pid: int) -> tuple[float, int]:
        """CPU seconds and bytes of memory; `pid` is the sandbox's first process."""
        ...

    def kill(self) -> None: ...

    def remove(self) -> bool:
        """False: something in it still lives; try again."""
        ...


def read(path: Path) -> str:
    """Empty if there is no such file: which ones exist differs between kernels."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def read_int(path: Path) -> int:
    text = read(path)
    return int(text) if text.isdigit() else 0


def read_key(path: Path, key: str) -> int:
    """A value of a flat-keyed file such as memory.stat."""
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def kill_members(procs: Path) -> None:
    """SIGKILL in rounds, because a member may fork between the reading and the killing."""
    for _ in range(KILL_ROUNDS):
        pids = read(procs).split()
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGKILL)


def remove_directory(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


class GroupV2:
    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def directories(self) -> dict[str, str]:
        return {UNIFIED: str(self.path)}

    @property
    def joins(self) -> list[str]:
        return []

    @property
    def clone_into(self) -> str:
        return str(self.path)

    def limit(self, spec: SandboxSpec, controllers: Iterable[str]) -> None:
        values = {"memory.oom.group": "1"} if "memory" in controllers else {}
        if "cpu" in controllers:
            values["cpu.weight"] = str(min(10_000, max(1, round(spec.cpu_shares * 100))))
        if spec.memory_limit is not None:
            values |= {"memory.max": str(spec.memory_limit << 20), "memory.swap.max": "0"}
        if spec.pids_limit is not None:
            values["pids.max"] = str(spec.pids_limit + OWN_PROCESSES)
        if spec.cpu_limit is not None:
            values["cpu.max"] = f"{max(1000, round(spec.cpu_limit * PERIOD_US))} {PERIOD_US}"
        write_all(self.path, values, optional=("memory.swap.max", "memory.oom.group", "cpu.weight"))

    def oom_kills(self) -> int:
        return read_key(self.path / "memory.events", "oom_kill")

    def peak(self) -> int:
        return read_int(self.path / "memory.peak")

    def usage(self, pid: int) -> tuple[float, int]:
        memory = self.path / "memory.current"
        idle = read_key(self.path / "memory.stat", "inactive_file")
        cpu = read_key(self.path / "cpu.stat", "usage_usec") / 1e6
        return cpu, max(0, read_int(memory) - idle) if memory.exists() else _family_usage(pid)[1]

    def kill(self) -> None:
        try:
            (self.path / "cgroup.kill").write_text("1")
        except OSError:  # before Linux 5.14
            kill_members(self.path / "cgroup.procs")

    def remove(self) -> bool:
        return remove_directory(self.path)


class GroupV1:
    clone_into = ""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = paths
        """Controller → directory."""

    @property
    def directories(self) -> dict[str, str]:
        return {name: str(path) for name, path in self.paths.items()}

    @property
    def joins(self) -> list[str]:
        # Not cgroup.procs: that takes a lock over all processes, which waits for an RCU grace period (8-15 ms
        # here). The launcher has one thread, and a thread that moves itself (0) needs no lock.
        return [str(path / "tasks") for path in self.paths.values()]

    def limit(self, spec: SandboxSpec) -> None:
        values = {"cpu": {"cpu.shares": str(max(2, round(spec.cpu_shares * 1024)))}}
        if spec.cpu_limit is not None:
            values["cpu"]["cpu.cfs_period_us"] = str(PERIOD_US)
            values["cpu"]["cpu.cfs_quota_us"] = str(max(1000, round(spec.cpu_limit * PERIOD_US)))
        if spec.memory_limit is not None:
            size = str(spec.memory_limit << 20)
            values["memory"] = {"memory.limit_in_bytes": size, "memory.memsw.limit_in_bytes": size}
        if spec.pids_limit is not None:
            values["pids"] = {"pids.max": str(spec.pids_limit + OWN_PROCESSES)}
        for controller, settings in values.items():
            if controller in self.paths:
                write_all(self.paths[controller], settings, optional=("memory.memsw.limit_in_bytes",))

    def _file(self, controller: str, name: str) -> Path:
        return self.paths.get(controller, Path("/nonexistent")) / name

    def oom_kills(self) -> int:
        return read_key(self._file("memory", "memory.oom_control"), "oom_kill")

    def peak(self) -> int:
        return read_int(self._file("memory", "memory.max_usage_in_bytes"))

    def usage(self, pid: int) -> tuple[float, int]:
        cpu, memory = 0.0, 0
        if not {"cpuacct", "memory"} <= self.paths.keys():
            cpu, memory = _family_usage(pid)
        if "cpuacct" in self.paths:
            cpu = read_int(self._file("cpuacct", "cpuacct.usage")) / 1e9
        if "memory" in self.paths:
            idle = read_key(self._file("memory", "memory.stat"), "total_inactive_file")
            memory = max(0, read_int(self._file("memory", "memory.usage_in_bytes")) - idle)
        return cpu, memory

    def kill(self) -> None:
        for path in self.paths.values():
            kill_members(path / "cgroup.procs")

    def remove(self) -> bool:
        removed = [remove_directory(path) for path in self.paths.values()]
        return all(removed)


class NoGroup:
    """Without control groups: rlimits for the program, and figures from /proc for whoever watches it."""

    clone_into = ""

    @property
    def directories(self) -> dict[str, str]:
        return {}

    @property
    def joins(self) -> list[str]:
        return []

    def oom_kills(self) -> int:
        return 0

    def peak(self) -> int:
        return 0

    def usage(self, pid: int) -> tuple[float, int]:
        return _family_usage(pid)

    def kill(self) -> None:
        pass

    def remove(self) -> bool:
        return True


def _family_usage(pid: int) -> tuple[float, int]:
    members = family(pid)
    return sum(member.cpu_seconds for member in members), sum(map(proportional_memory, members))


def write_all(directory: Path, values: Mapping[str, str], optional: Iterable[str] = ()) -> None:
    """`optional`: what older kernels, or kernels without swap accounting, lack."""
    for name, value in values.items():
        try:
            (directory / name).write_text(value)
        except OSError:
            if name not in optional:
                raise


def remove_blocking(group: Group) -> None:
    for _ in range(REMOVE_ROUNDS):
        group.kill()
        if group.remove():
            return
        time.sleep(REMOVE_PAUSE)


def open_group(directories: Mapping[str, str]) -> Group:
    """The group that another process made, from its `directories`."""
    if UNIFIED in directories:
        return GroupV2(Path(directories[UNIFIED]))
    if directories:
        return GroupV1({name: Path(path) for name, path in directories.items()})
    return NoGroup()
