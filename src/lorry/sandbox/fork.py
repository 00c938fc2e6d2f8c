"""How a fork of a template becomes a container: the same walls as the launcher's, from the inside, in 2 ms.

Runs in the forked child, in the template's sandbox and with nothing but the standard library. The template has no
capability left; a new user namespace gives them back for the container's own mounts, and they are dropped again
before any of the user's code goes on. User ids stay what they are: 0 in here is the sandbox's unprivileged uid on
the host.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass

from lorry.sandbox import seccomp
from lorry.sandbox.landlock import confine_signals
from lorry.sandbox.mounts import BIND, NODEV, NOEXEC, NOSUID, PRIVATE, RDONLY, REC, Progress, at, libc, mount, must
from lorry.sandbox.privileges import NEWIPC, NEWNS, NEWUSER, SET_DUMPABLE, drop_capabilities, map_ids
from lorry.sandbox.rootfs import HOME, SHM, TMP, VAR_TMP

POOL = "/run/containers"
"""Where a template sees the folders of its containers; each container finds an empty folder there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkConfig:
    container_id: str
    """Its folder is `POOL/container_id`."""
    keep: tuple[str, ...]
    """Mount points below home and /tmp that belong to the function: the user's source, the cache, Volumes."""
    shm_mib: int
    rlimits: tuple[tuple[int, int], ...]
    cwd: str


def become_container(config: ForkConfig, groups: Sequence[int]) -> None:
    """`groups`: open files of control groups to join, closed here. OSError when the kernel refuses a step; the
    process must end then."""
    folder = f"{POOL}/{config.container_id}"
    at("opening its outputs")
    for number, name in enumerate(("out", "err"), 1):
        fd = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(fd, number)  # from now on the server can read what went wrong
        os.close(fd)
    at("joining its control group")
    for fd in groups:
        os.write(fd, b"0")
        os.close(fd)
    at("making namespaces")
    must(libc.unshare(NEWUSER | NEWNS | NEWIPC))
    map_ids("/proc/self", 0, 0)
    at("mounting its own folders")
    mount(None, "/", None, REC | PRIVATE)
    _own_scratch(folder, config.keep)
    at("mounting /dev/shm")
    mount("tmpfs", SHM, "tmpfs", NOSUID | NODEV, f"mode=1777,size={config.shm_mib}m")
    at("hiding the other containers")
    mount("tmpfs", POOL, "tmpfs", NOSUID | NODEV | NOEXEC | RDONLY, "size=4k,mode=555")
    at("dropping capabilities")
    drop_capabilities()
    must(libc.prctl(SET_DUMPABLE, 1, 0, 0, 0))  # as after an exec: else it could not read its own /proc/self/environ
    at("setting limits")
    for which, limit in config.rlimits:
        resource.setrlimit(which, (limit, limit))
    os.setsid()
    at(f"entering the working directory {config.cwd}")
    os.chdir(config.cwd)
    at("confining its signals")
    confine_signals()
    at("installing the filter of system calls")
    seccomp.install(seccomp.CONTAINER)


def last_step() -> str:
    """What `become_container` was doing."""
    return Progress.step


def _own_scratch(folder: str, keep: Sequence[str]) -> None:
    """Home and /tmp of its own. What the function has mounted below them is held by descriptors meanwhile."""
    held = [(target, os.open(target, os.O_PATH)) for target in keep]
    for name, target in (("home", HOME), ("tmp", TMP), ("tmp", VAR_TMP)):
        mount(f"{folder}/{name}", target, None, BIND)
    for target, fd in held:
        here = f"/proc/self/fd/{fd}"
        _mount_point(target, os.path.isdir(here))
        mount(here, target, None, BIND | REC)
        os.close(fd)


def _mount_point(target: str, directory: bool) -> None:
    """The folders are empty and nobody else's: no link can lie in the way."""
    if directory:
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.exists(target):
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
