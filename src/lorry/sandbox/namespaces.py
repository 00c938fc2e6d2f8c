"""Tier `namespaces`: Linux's own isolation by our own launcher, as root or as an ordinary user; no package
needed.

The program sees a read-only file system of its own, its own processes, IPC and host name, uid 0 without any
capability, and the host's network unless that is blocked. On the host it is never uid 0.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorry.errors import InvalidError
from lorry.sandbox.build_ids import build_ids
from lorry.sandbox.forked import ForkedSandbox, Forks
from lorry.sandbox.interface import Feature, SandboxSpec
from lorry.sandbox.limits import Limits, find_limits
from lorry.sandbox.probe import probe
from lorry.sandbox.procfs import total_memory_mib
from lorry.sandbox.records import files_of
from lorry.sandbox.rootfs import plan
from lorry.sandbox.running import RunningSandbox, adopt
from lorry.sandbox.spawn import LaunchError
from lorry.sandbox.starting import Isolation, start

SANDBOX_UID = 65533
"""Host uid and gid of everything that a server running as root starts. Not 65534: `nobody` owns daemons, and
files of network shares. systemd documents 65520-65533 as unused, and 16-bit user id maps of containers
contain it. It owns the container's home, tmp and FIFOs, and must own the Volumes that it may write."""

NO_GROUPS = {
    Feature.CPU_LIMIT: "cpu_limit needs control groups, which this server may not write",
    Feature.PIDS_LIMIT: "a limit on processes needs control groups, which this server may not write",
}
WAY_TO_GROUPS = "run it under `systemd-run --user --scope -p Delegate=yes`, as a delegated unit, or as root"


def sandbox_owner() -> int | None:
    """SANDBOX_UID for a server that is root; None for an ordinary user, whose sandboxes are its own. So are those of
    the root of a user namespace that has no other ids (`unshare -r`, rootless containers without subordinate ids)."""
    return SANDBOX_UID if os.geteuid() == 0 and all(map(_is_mapped, ("uid_map", "gid_map"))) else None


def _is_mapped(table: str) -> bool:
    rows = (map(int, line.split()) for line in Path("/proc/self", table).read_text().splitlines())
    return any(first <= SANDBOX_UID < first + count for first, _outside, count in rows)


class NamespaceSandbox:
    name = "namespaces"

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or find_limits()
        self.owner = sandbox_owner()
        self.forks = Forks(self.limits, self.owner)

    def check(self) -> tuple[str, ...]:
        return probe(self._isolation, self.limits, lambda error: causes(error, read_facts()))

    def missing(self, features: Iterable[Feature]) -> tuple[str, ...]:
        given = self.limits.features | {
            Feature.MOUNTS,
            Feature.BLOCK_NETWORK,
            Feature.LAYERS,
            Feature.MEMORY_LIMIT,  # RLIMIT_DATA and the server's watch
            Feature.PIDS_LIMIT,  # RLIMIT_NPROC in a user namespace of its own
        }
        return tuple(f"{NO_GROUPS[feature]}: {WAY_TO_GROUPS}" for feature in features if feature not in given)

    async def start(self, spec: SandboxSpec) -> RunningSandbox:
        if problems := self.missing(spec.features()):
            raise InvalidError("; ".join(problems))
        return await start(spec, self._isolation, self.limits)

    def adopt(self, container_id: str, folder: str, pid: int, pid_started: int) -> RunningSandbox | None:
        forked = files_of(folder) != folder
        kind = ForkedSandbox if forked else RunningSandbox
        return adopt(container_id, folder, pid, pid_started, pid_namespace=not forked, kind=kind)

    def remove_leftovers(self) -> None:
        self.limits.remove_leftovers()

    def _isolation(self, spec: SandboxSpec) -> Isolation:
        shm = spec.memory_limit or max(64, total_memory_mib() // 2)
        steps = tuple(plan(spec, shm_mib=shm))
        ids = build_ids(self.owner) if spec.build else ()
        return Isolation(isolate=True, owner=self.owner, steps=steps, env=dict(spec.env), ids=ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What decides whether this process may make namespaces."""

    root: bool
    apparmor_restricts: bool
    max_user_namespaces: int
    clone_allowed: bool
    """Debian's older switch, kernel.unprivileged_userns_clone."""
    in_container: bool
    seccomp: bool


def read_facts() -> Facts:
    def number(path: str, default: int) -> int:
        try:
            return int(Path(path).read_text())
        except (OSError, ValueError):
            return default

    status = Path("/proc/self/status").read_text() if os.path.exists("/proc/self/status") else ""
    return Facts(
        root=os.geteuid() == 0,
        apparmor_restricts=number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 0) == 1,
        max_user_namespaces=number("/proc/sys/user/max_user_namespaces", 1),
        clone_allowed=number("/proc/sys/kernel/unprivileged_userns_clone", 1) == 1,
        in_container=any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))),
        seccomp="Seccomp:\t2" in status,
    )


def causes(error: LaunchError, facts: Facts) -> tuple[str, ...]:
    """Why the probe failed, and what to do: one sentence per likely cause, the failure itself if none is
    known."""
    found = []
    if facts.max_user_namespaces == 0:
        found.append("user namespaces are switched off: `sysctl -w user.max_user_namespaces=15000`")
    if not facts.root and not facts.clone_allowed:
        found.append("user namespaces are for root only: `sysctl -w kernel.unprivileged_userns_clone=1`")
    if not facts.root and facts.apparmor_restricts:
        found.append(
            "AppArmor keeps ordinary users from user namespaces (Ubuntu 23.10 and later): "
            "`apt-get install bubblewrap` gives the tier bwrap; for this one "
            "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or run the server as root"
        )
    if facts.seccomp:
        found.append(
            "a seccomp filter is installed around this process and may forbid unshare or mount: "
            "start it without one (Docker: `--security-opt seccomp=unconfined`)"
        )
    if facts.in_container:
        found.append(
            "this is a container: start it with `--cap-add SYS_ADMIN --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined`"
        )
    return tuple(f"{sentence} ({error})" for sentence in found) or (f"no sandbox could be made: {error}",)
