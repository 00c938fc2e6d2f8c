"""Tier `bwrap`: bubblewrap makes the namespaces, where the machine allows that to it alone.

Ubuntu since 23.10 keeps ordinary users from user namespaces by AppArmor, with a profile that lets /usr/bin/bwrap make
them. The program sees what it sees in the tier `namespaces`, and is held by the same filter of system calls; what it
cannot do is fork containers from templates, since no namespace can be made inside. It is for servers of ordinary
users: root's launcher needs no help.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from lorry.errors import InvalidError
from lorry.sandbox.interface import Feature, Mount, SandboxSpec
from lorry.sandbox.limits import Limits, find_limits
from lorry.sandbox.namespaces import NO_GROUPS, WAY_TO_GROUPS, sandbox_owner
from lorry.sandbox.probe import probe
from lorry.sandbox.procfs import total_memory_mib
from lorry.sandbox.rootfs import NODEV, NOSUID, RDONLY, Step, plan
from lorry.sandbox.running import RunningSandbox, adopt
from lorry.sandbox.starting import Isolation, start
from lorry.sandbox.wrapping import INSIDE

ROOT = "it is for servers of ordinary users; root's own launcher needs no bubblewrap"
NOT_INSTALLED = "bubblewrap is not installed: `apt-get install bubblewrap`, or the like"
NO_LAYERS = (
    "the sandbox tier 'bwrap' cannot give an image a root file system of its own: that takes the tier namespaces, and "
    "`lorry doctor` names what is in its way"
)
OLD = "this bubblewrap is too old: version 0.8 or later is needed"
REFUSED = (
    "bubblewrap may not make user namespaces. Where AppArmor forbids it, give it a profile, /etc/apparmor.d/bwrap: "
    "`abi <abi/4.0>, include <tunables/global> profile bwrap /usr/bin/bwrap flags=(unconfined) { userns, }`, "
    "then `systemctl reload apparmor`"
)


class BwrapSandbox:
    name = "bwrap"
    forks = None
    """bwrap forbids the namespaces that a fork would make for itself."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or find_limits()
        self.owner = None

    def check(self) -> tuple[str, ...]:
        if sandbox_owner() is not None:
            return (ROOT,)
        if shutil.which("bwrap") is None:
            return (NOT_INSTALLED,)
        return probe(self._isolation, self.limits, lambda error: (f"{explain(error.text)} ({error})",))

    def missing(self, features: Iterable[Feature]) -> tuple[str, ...]:
        given = self.limits.features | {
            Feature.MOUNTS,
            Feature.BLOCK_NETWORK,
            Feature.MEMORY_LIMIT,
            Feature.PIDS_LIMIT,
        }
        ways = {feature: f"{why}: {WAY_TO_GROUPS}" for feature, why in NO_GROUPS.items()}
        return tuple({**ways, Feature.LAYERS: NO_LAYERS}[feature] for feature in features if feature not in given)

    async def start(self, spec: SandboxSpec) -> RunningSandbox:
        if problems := self.missing(spec.features()):
            raise InvalidError("; ".join(problems))
        if spec.template:
            raise InvalidError("the sandbox tier 'bwrap' cannot fork containers from templates: they start cold")
        return await start(spec, self._isolation, self.limits)

    def adopt(self, container_id: str, folder: str, pid: int, pid_started: int) -> RunningSandbox | None:
        return adopt(container_id, folder, pid, pid_started, pid_namespace=True)

    def remove_leftovers(self) -> None:
        self.limits.remove_leftovers()

    def _isolation(self, spec: SandboxSpec) -> Isolation:
        for outer in spec.mounts:
            for inner in spec.mounts:
                refuse_traps(outer, inner)
        program = shutil.which("bwrap")
        if program is None:
            raise InvalidError(NOT_INSTALLED)
        shm = spec.memory_limit or max(64, total_memory_mib() // 2)
        own = len(plan(SandboxSpec(container_id=spec.container_id, argv=(), env=(), folder=spec.folder), shm_mib=shm))
        steps = plan(spec, shm_mib=shm)
        steps[own:own] = launcher_steps()
        return Isolation(isolate=True, owner=None, steps=tuple(steps), env=dict(spec.env), wrapper=program)


def launcher_steps() -> list[Step]:
    """What the sandbox's first process needs inside: this package, and the server's interpreter at its own path."""
    steps: list[Step] = [("bind", f"{INSIDE}/sandbox", os.path.dirname(os.path.abspath(__file__)), RDONLY | NOSUID)]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        steps.append(("bind", sys.base_prefix, sys.base_prefix, RDONLY | NOSUID | NODEV))
    return steps


def refuse_traps(outer: Mount, inner: Mount) -> None:
    """bubblewrap follows symbolic links where it mounts, and the content of a Volume belongs to user code: a link in
    it would lead a mount away. Raises InvalidError."""
    below = posixpath.relpath(inner.target, outer.target)
    if inner is outer or below.startswith("..") or below == ".":
        return
    if not outer.read_only:
        raise InvalidError(
            f"cannot mount {inner.source} at {inner.target}: it lies in {outer.target}, which is writable, and the "
            "sandbox tier 'bwrap' cannot mount there safely. Mount it elsewhere"
        )
    place = Path(outer.source)
    for part in PurePosixPath(below).parts:
        place /= part
        if place.is_symlink():
            raise InvalidError(
                f"cannot mount {inner.source} at {inner.target}: a mount point below another mount must not lie "
                "behind a symbolic link"
            )


def explain(text: str) -> str:
    if "Unknown option" in text:
        return OLD
    if "uid map" in text or "namespace" in text or "RTM_NEWADDR" in text:
        return REFUSED
    return "bubblewrap could not make a sandbox"
