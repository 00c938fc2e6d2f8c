"""Starting a sandbox: the steps that every tier shares, each undone when a later one fails."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from lorry.errors import Error, InvalidError, ResourceError
from lorry.sandbox.cgroups import Group, remove_blocking
from lorry.sandbox.interface import Feature, SandboxSpec
from lorry.sandbox.limits import Limits
from lorry.sandbox.procfs import start_of
from lorry.sandbox.records import OUTPUTS, open_outputs, prepare_folder, write_group
from lorry.sandbox.rootfs import Step
from lorry.sandbox.running import RunningSandbox
from lorry.sandbox.spawn import LaunchConfig, LaunchError, launch

USER_STEPS = ("executing ", "entering the working directory ", "mounting ")
"""What the launcher does with paths that a user chose."""
USER_ERRNOS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EROFS,
    errno.ENOEXEC,
    errno.EACCES,
    errno.E2BIG,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What a tier makes of a spec."""

    isolate: bool
    owner: int | None
    steps: tuple[Step, ...]
    env: dict[str, str]
    ids: tuple[tuple[int, int, int], ...] = ()
    """See LaunchConfig."""
    wrapper: str = ""
    """Path of bubblewrap where that makes the sandbox."""


def limits_without_groups(spec: SandboxSpec, limits: Limits, own_user_namespace: bool) -> list[tuple[int, int]]:
    """rlimits in place of what control groups do not limit here. They hold per process (memory), or per user
    namespace (processes): outside a user namespace of its own that one would count everything its user
    runs."""
    found = []
    if spec.memory_limit is not None and Feature.MEMORY_LIMIT not in limits.features:
        found.append((resource.RLIMIT_DATA, spec.memory_limit << 20))
    if spec.pids_limit is not None and Feature.PIDS_LIMIT not in limits.features and own_user_namespace:
        found.append((resource.RLIMIT_NPROC, spec.pids_limit + 1))
    return [*found, (resource.RLIMIT_CORE, 0)]


def make_config(spec: SandboxSpec, isolation: Isolation, limits: Limits, group: Group) -> LaunchConfig:
    out, err = (f"{spec.folder}/{name}" for name in OUTPUTS)
    return LaunchConfig(
        isolate=isolation.isolate,
        wrapper=isolation.wrapper,
        owner=isolation.owner,
        root=f"{spec.folder}/root",
        steps=list(isolation.steps),
        hostname=spec.container_id,
        block_network=spec.block_network,
        joins=group.joins,
        clone_into=group.clone_into,
        rlimits=limits_without_groups(spec, limits, own_user_namespace=isolation.isolate),
        outputs=(out, err),
        record=f"{spec.folder}/exit",
        template=spec.template,
        writable=spec.root is not None and bool(spec.root.upper),
        build=spec.build,
        ids=list(isolation.ids),
        argv=list(spec.argv),
        env=isolation.env,
        cwd=spec.cwd,
    )


def start_blocking(spec: SandboxSpec, isolate: Callable[[SandboxSpec], Isolation], limits: Limits) -> RunningSandbox:
    """Raises LaunchError, OSError and Error; nothing of the sandbox is left then but files in its folder."""
    isolation = isolate(spec)
    prepare_folder(spec.folder, isolation.owner)
    outputs = open_outputs(spec.folder)
    group = None
    try:
        group = limits.make(spec)
        write_group(spec.folder, group)
        launched = launch(make_config(spec, isolation, limits, group))
    except BaseException:
        for fd in outputs:
            os.close(fd)
        if group is not None:
            remove_blocking(group)
        raise
    return RunningSandbox(
        container_id=spec.container_id,
        folder=spec.folder,
        pid=launched.pid,
        # The pidfd was opened while its parent lived. Should the sandbox have ended since, its zombie still
        # waits for the server, its subreaper; 0 is only what is left where the server is none, and then
        # nobody adopts it.
        pid_started=start_of(launched.pid),
        pidfd=launched.pidfd,
        group=group,
        outputs=outputs,
        pid_namespace=isolation.isolate,
    )


async def start(spec: SandboxSpec, isolate: Callable[[SandboxSpec], Isolation], limits: Limits) -> RunningSandbox:
    """`start_blocking` in a thread, with errors that say who can do something about them."""
    if not os.path.exists(sys.executable):  # the launcher is a program of the server's own environment
        raise ResourceError(
            f"nothing can be started: the environment that the server runs from ({sys.prefix}) was deleted or moved. "
            "`lorry server restart` starts it from the present one"
        )
    work = asyncio.ensure_future(asyncio.to_thread(start_blocking, spec, isolate, limits))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # The thread cannot be stopped half-way; what it started must not stay behind without an owner.
        with suppress(LaunchError, OSError, Error):
            abandoned = await work
            abandoned.kill()
            await abandoned.wait()
            abandoned.close()
        raise
    except (LaunchError, OSError) as e:
        raise explain(spec, e) from e


def explain(spec: SandboxSpec, error: LaunchError | OSError) -> Error:
    what = f"container {spec.container_id} could not be started"
    if isinstance(error, OSError):
        return ResourceError(f"{what}: {error}")
    if error.step.startswith(USER_STEPS) and error.errno in USER_ERRNOS:
        return InvalidError(f"{what}: {error}. {advice(error)}".rstrip())
    return ResourceError(f"{what}: {error}. `lorry doctor` says what this machine allows")


def advice(error: LaunchError) -> str:
    if error.step.startswith("mounting ") and error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "A mount point below another mount must not be, or lie behind, a symbolic link or a file"
    if error.step.startswith("mounting ") and error.errno == errno.EROFS:
        return "A mount point inside a read-only mount must exist there already"
    return ""
