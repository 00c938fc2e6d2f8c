"""The three ways to limit containers, and the search for the one that works here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from lorry.sandbox.cgroups import Group, GroupV1, GroupV2, NoGroup, read, remove_directory
from lorry.sandbox.interface import Feature, SandboxSpec

YOUNG = 60.0
"""Seconds; between making a group and joining it lie milliseconds."""
PARENT = "lorry"
FEATURE_OF = {"memory": Feature.MEMORY_LIMIT, "pids": Feature.PIDS_LIMIT, "cpu": Feature.CPU_LIMIT}
V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
V2_CONTROLLERS = ("memory", "pids", "cpu")


class Limits(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def features(self) -> frozenset[Feature]:
        """What groups of this kind can limit."""
        ...

    def make(self, spec: SandboxSpec) -> Group:
        """Raises OSError."""
        ...

    def remove_leftovers(self) -> None:
        """Removes the groups of dead containers. Only empty ones: another server may have its containers
        here."""
        ...


class LimitsV2:
    name = "cgroup v2"

    def __init__(self, base: Path, controllers: Iterable[str]) -> None:
        self.base = base
        self.controllers = frozenset(controllers)
        self.features = frozenset(FEATURE_OF[name] for name in self.controllers)

    def make(self, spec: SandboxSpec) -> Group:
        group = GroupV2(self.base / spec.container_id)
        group.path.mkdir()
        try:
            group.limit(spec, self.controllers)
        except OSError:
            group.remove()
            raise
        return group

    def remove_leftovers(self) -> None:
        _remove_empty(self.base)


class LimitsV1:
    name = "cgroup v1"

    def __init__(self, bases: Mapping[str, Path]) -> None:
        self.bases = bases
        self.features = frozenset(FEATURE_OF[name] for name in bases if name in FEATURE_OF)

    def make(self, spec: SandboxSpec) -> Group:
        group = GroupV1({name: base / spec.container_id for name, base in self.bases.items()})
        try:
            for path in group.paths.values():
                path.mkdir(exist_ok=True)  # two controllers may share one hierarchy
            group.limit(spec)
        except OSError:
            group.remove()
            raise
        return group

    def remove_leftovers(self) -> None:
        for base in self.bases.values():
            _remove_empty(base)


class NoLimits:
    """Off. The tiers set rlimits instead, and the server watches the sum of a container's processes."""

    name = "no cgroups"
    features: frozenset[Feature] = frozenset()

    def make(self, spec: SandboxSpec) -> Group:
        return NoGroup()

    def remove_leftovers(self) -> None:
        pass


def _remove_empty(base: Path) -> None:
    """Only those older than YOUNG: another server's container may be about to join a group that is still empty."""
    with suppress(OSError):
        for path in base.iterdir():
            if path.is_dir() and time.time() - path.stat().st_mtime > YOUNG:
                remove_directory(path)


def find_limits() -> Limits:
    """The best way that works for this process, by trying. Blocking, some 30 ms."""
    if sys.platform != "linux":
        return NoLimits()
    mounts = dict(_cgroup_mounts(read(Path("/proc/self/mountinfo"))))
    groups = _own_groups(read(Path("/proc/self/cgroup")))
    return _try_v2(mounts, groups) or _try_v1(mounts, groups) or NoLimits()


def _cgroup_mounts(mountinfo: str) -> Iterator[tuple[str, tuple[str, Path]]]:
    """(controller, or "" for version 2) → (root of the mount inside the hierarchy, mount point)."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        place = (before.split()[3], Path(before.split()[4]))
        if kind == "cgroup2":
            yield "", place
        elif kind == "cgroup":
            for name in set(V1_CONTROLLERS) & set(options.split(",")):
                yield name, place


def is_group_of(path: Path, container_id: str) -> bool:
    """Whether `make` may have made this group, here or in a server that was started elsewhere."""
    points = [point for _, (_, point) in _cgroup_mounts(read(Path("/proc/self/mountinfo")))]
    mounted = ".." not in path.parts and any(path.is_relative_to(point) for point in points)
    return mounted and path.name == container_id and path.parent.name == PARENT


def _own_groups(cgroup: str) -> dict[str, str]:
    """(controller, or "" for version 2) → this process's group."""
    found: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, names, path = line.split(":", 2)
        found |= dict.fromkeys(names.split(","), path)
    return found


def _directory(place: tuple[str, Path], group: str) -> Path:
    """Where this process's own group is mounted; the mount point if it is outside (a container without cgroup
    ns)."""
    root, point = place
    inside = os.path.relpath(group, root)
    path = point if inside.startswith("..") else point / inside
    return path if path.is_dir() else point


def _try_v1(mounts: Mapping[str, tuple[str, Path]], groups: Mapping[str, str]) -> Limits | None:
    bases = {}
    for name in V1_CONTROLLERS:
        if name in mounts and name in groups:
            base = _directory(mounts[name], groups[name]) / PARENT
            if _usable(base):
                bases[name] = base
    return LimitsV1(bases) if set(bases) & set(FEATURE_OF) else None


def _try_v2(mounts: Mapping[str, tuple[str, Path]], groups: Mapping[str, str]) -> Limits | None:
    """From the own group upwards: a group that has processes cannot have limited children, so a terminal's
    scope is useless and the user's slice above it may serve. Root's own tree, a delegated unit, a user
    session: all here."""
    if "" not in mounts:
        return None
    top = mounts[""][1]
    own = _directory(mounts[""], groups.get("", "/"))
    for folder in (own, *own.parents):
        _vacate(folder)
        _enable(folder)
        base = folder / PARENT
        if _usable(base):
            controllers = _enable(base)
            if "memory" in controllers:
                return LimitsV2(base, controllers)
            remove_directory(base)
        if folder == top:
            return None
    return None


def _enable(folder: Path) -> frozenset[str]:
    """Gives the children of a group what can be given; returns what they have."""
    control = folder / "cgroup.subtree_control"
    for name in V2_CONTROLLERS:
        with suppress(OSError):
            control.write_text(f"+{name}")
    return frozenset(read(control).split()) & frozenset(V2_CONTROLLERS)


def _vacate(folder: Path) -> None:
    """In a unit that systemd delegated to the server there is only the server: it moves to a leaf of its
    own."""
    pids = {int(pid) for pid in read(folder / "cgroup.procs").split()}
    if not pids or not pids <= {os.getpid(), os.getppid()}:
        return
    leaf = folder / f"{PARENT}-server"
    with suppress(OSError):
        leaf.mkdir(exist_ok=True)
        for pid in pids:
            (leaf / "cgroup.procs").write_text(str(pid))


def _usable(base: Path) -> bool:
    """Whether a process can really be moved into a child of `base`."""
    probe = base / f"probe-{os.getpid()}"
    try:
        probe.mkdir(parents=True)
        with subprocess.Popen(["/bin/sh", "-c", "read x"], stdin=subprocess.PIPE) as process:
            (probe / "cgroup.procs").write_text(str(process.pid))
            process.communicate()
    except OSError:
        remove_directory(probe)
        remove_directory(base)
        return False
    return remove_directory(probe)
