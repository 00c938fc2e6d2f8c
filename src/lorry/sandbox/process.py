"""Tier `process`: a plain process group, anywhere, macOS included. It separates containers' lives, not their
rights.

The program runs as the server's own user and sees everything that this user sees. Its HOME and TMPDIR lie in
the container's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from lorry.errors import InvalidError
from lorry.sandbox.interface import Feature, SandboxSpec
from lorry.sandbox.limits import Limits, find_limits
from lorry.sandbox.running import RunningSandbox, adopt
from lorry.sandbox.starting import Isolation, start

WAY_UP = "run the server on Linux with namespaces: `lorry doctor` names what is in the way"
WHY = {
    Feature.MOUNTS: (
        "cannot mount Volumes or files at absolute paths: without a mount namespace they would appear in the "
        "file system of the whole machine"
    ),
    Feature.BLOCK_NETWORK: "cannot block the network: that takes a network namespace",
    Feature.LAYERS: "cannot give an image a root file system of its own: that takes a mount namespace",
    Feature.MEMORY_LIMIT: "cannot limit memory on this system",
    Feature.PIDS_LIMIT: "cannot limit the number of processes without control groups",
    Feature.CPU_LIMIT: "cannot limit cpu without control groups",
}


class ProcessSandbox:
    name = "process"
    forks = None
    """A fork without walls of its own could not be told from its template."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or find_limits()

    def check(self) -> tuple[str, ...]:
        return ()

    def missing(self, features: Iterable[Feature]) -> tuple[str, ...]:
        given = set(self.limits.features)
        if os.uname().sysname == "Linux":
            given.add(Feature.MEMORY_LIMIT)  # RLIMIT_DATA and the server's watch
        return tuple(
            f"the sandbox tier 'process' {WHY[feature]}; {WAY_UP}" for feature in features if feature not in given
        )

    async def start(self, spec: SandboxSpec) -> RunningSandbox:
        if problems := self.missing(spec.features()):
            raise InvalidError("; ".join(problems))
        return await start(spec, _isolation, self.limits)

    def adopt(self, container_id: str, folder: str, pid: int, pid_started: int) -> RunningSandbox | None:
        return adopt(container_id, folder, pid, pid_started, pid_namespace=False)

    def remove_leftovers(self) -> None:
        self.limits.remove_leftovers()


def _isolation(spec: SandboxSpec) -> Isolation:
    env = dict(spec.env) | {"HOME": f"{spec.folder}/home", "TMPDIR": os.path.join(spec.folder, "tmp")}
    return Isolation(isolate=False, owner=None, steps=(), env=env)
