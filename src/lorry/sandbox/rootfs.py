"""What a sandbox's root file system consists of: a list of steps for the launcher, made without touching
anything."""

from __future__ import annotations

import glob
import os
import posixpath
from pathlib import PurePosixPath

from lorry.errors import InvalidError
from lorry.sandbox.interface import Mount, RootLayers, SandboxSpec

RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8

Step = tuple[str, str, str, int]
"""(verb, target, what, number):
("bind", target, host source, flags) · ("dir", target, "", mode) · ("file", target, content, 0)
("link", target, destination, 0) · (file system type, target, options, flags) mounts a new one."""

HOME, TMP, SHM = "/root", "/tmp", "/dev/shm"  # noqa: S108 - private to each container
VAR_TMP = "/var/tmp"  # noqa: S108

SYSTEM_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

HOST_ETC = (
    "alternatives",
    "ca-certificates*",
    "crypto-policies",
    "gai.conf",
    "ld.so.cache",
    "ld.so.conf*",
    "localtime",
    "mime.types",
    "os-release",
    "pki",
    "protocols",
    "resolv.conf",
    "services",
    "ssl",
)
"""What programs read of /etc to find libraries, names, certificates and the time. No users, hosts or
secrets."""

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
GPU_CONTROL = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")

FORBIDDEN = ("/", "/proc", "/dev", "/etc")
"""Nothing is mounted on these, nor below the first two after it: they are the sandbox's own."""


def plan(spec: SandboxSpec, shm_mib: int) -> list[Step]:
    """Raises InvalidError for mounts that cannot work."""
    if spec.root is not None:
        return _image_plan(spec, spec.root, shm_mib)
    return [
        *_system(),
        *_etc(spec.container_id),
        *_devices(spec.gpus, shm_mib),
        *_scratch(spec.folder),
        *(step for mount in spec.mounts for step in _mount(mount)),
    ]


def _image_plan(spec: SandboxSpec, root: RootLayers, shm_mib: int) -> list[Step]:
    """The image has its own /usr and /etc; of the host's it gets only what finds names. A build keeps what it writes
    to home and /tmp, and finds a /dev and a /run that are no part of any layer."""
    lines = [*root.lower, "", root.upper, root.work] if root.upper else [*root.lower]
    steps: list[Step] = [("overlay", "/", "\n".join(lines), 0), _directory("/proc"), _directory("/run")]
    if spec.build:
        steps.append(("tmpfs", "/run", "mode=755", NOSUID | NODEV))
    steps += [_directory("/dev"), ("tmpfs", "/dev", "mode=755,size=1m", NOSUID | NOEXEC)]
    hosts = f"127.0.0.1 localhost {spec.container_id}\n::1 localhost ip6-localhost\n"
    if not spec.build:
        steps.append(("file", "/etc/hosts", hosts, 0))
    if os.path.exists("/etc/resolv.conf"):
        steps.append(_bind(os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf", RDONLY | NOSUID | NODEV))
    steps += _devices(spec.gpus, shm_mib)
    if not spec.build:
        steps += _scratch(spec.folder)
    return [*steps, *(step for mount in spec.mounts for step in _mount(mount))]


def _bind(source: str, target: str, flags: int) -> Step:
    return ("bind", target, source, flags)


def _directory(target: str, mode: int = 0o755) -> Step:
    return ("dir", target, "", mode)


def _system() -> list[Step]:
    steps = [_bind("/usr", "/usr", RDONLY | NOSUID | NODEV), _directory("/proc"), _directory("/run")]
    for name in SYSTEM_LINKS:
        if os.path.islink(name):
            steps.append(("link", name, os.readlink(name), 0))
        elif os.path.isdir(name):
            steps.append(_bind(name, name, RDONLY | NOSUID | NODEV))
    return steps


def _etc(hostname: str) -> list[Step]:
    files = {
        "passwd": f"root:x:0:0:root:{HOME}:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        "group": "root:x:0:\nnogroup:x:65534:\n",
        "hostname": f"{hostname}\n",
        "hosts": f"127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    steps = [_directory("/etc"), *(("file", f"/etc/{name}", text, 0) for name, text in files.items())]
    for pattern in HOST_ETC:
        for name in sorted(glob.glob(f"/etc/{pattern}")):
            source = os.path.realpath(name)  # resolv.conf is often a link into /run, which is not in here
            if os.path.exists(source):
                steps.append(_bind(source, name, RDONLY | NOSUID | NODEV))
    return steps


def _devices(gpus: tuple[int, ...], shm_mib: int) -> list[Step]:
    names = list(DEVICES)
    if gpus:
        names += [*(f"nvidia{index}" for index in gpus), *GPU_CONTROL]
    steps = [
        _directory("/dev"),
        *(_bind(f"/dev/{name}", f"/dev/{name}", NOSUID | NOEXEC) for name in names if _exists(f"/dev/{name}")),
        _directory("/dev/pts"),
        ("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=620", NOSUID | NOEXEC),
        _directory(SHM, 0o1777),
        ("tmpfs", SHM, f"mode=1777,size={shm_mib}m", NOSUID | NODEV),
    ]
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"}
    links |= {name: f"/proc/self/fd/{fd}" for fd, name in enumerate(("stdin", "stdout", "stderr"))}
    steps += (("link", f"/dev/{name}", where, 0) for name, where in links.items())
    if gpus and _exists("/sys/bus/pci"):
        # NCCL and NVML read how GPUs are wired.
        steps += [_directory("/sys"), _bind("/sys", "/sys", RDONLY | NOSUID | NODEV | NOEXEC)]
    return steps


def _scratch(folder: str) -> list[Step]:
    return [
        _directory(HOME),
        _bind(os.path.join(folder, "home"), HOME, NOSUID | NODEV),
        _directory(TMP),
        _bind(os.path.join(folder, "tmp"), TMP, NOSUID | NODEV),
        _directory("/var"),
        _directory(VAR_TMP),
        # The same folder mounted again, not a link: a mount point may lie in it, but never behind a link.
        _bind(os.path.join(folder, "tmp"), VAR_TMP, NOSUID | NODEV),
    ]


def _mount(mount: Mount) -> list[Step]:
    target = mount.target
    if not target.startswith("/") or posixpath.normpath(target) != target or target.startswith("//"):
        raise InvalidError(
            f"cannot mount {mount.source} at {target!r}: the target must be an absolute path without '..', "
            "doubled or trailing slashes"
        )
    if target in FORBIDDEN or any(PurePosixPath(target).is_relative_to(path) for path in ("/proc", "/dev")):
        raise InvalidError(f"cannot mount {mount.source} at {target}: that path belongs to the sandbox itself")
    source = os.path.realpath(mount.source)
    if not _exists(source):
        raise InvalidError(f"cannot mount {mount.source} at {target}: {mount.source} does not exist")
    return [_bind(source, target, NOSUID | NODEV | (RDONLY if mount.read_only else 0))]


def _exists(path: str) -> bool:
    return os.path.exists(path)
