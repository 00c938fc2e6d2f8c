"""Isolation of one container: what every tier takes, gives and promises.

A tier (`namespaces`, `process`) starts one program inside a sandbox and hands back a `SandboxProcess`. A
sandbox outlives the process that started it: nothing in it is tied to its parent's life, and `adopt` finds it
again.

The container's folder belongs to the caller, who makes it fresh and empty for each container and removes it
after `wait`. It must be closed to other users of the machine (mode 0700 on it or on a parent). In it a
sandbox makes

    home/ tmp/    HOME and /tmp of the program, on disk, writable
    out err       FIFOs: descriptors 1 and 2 of the program
    exit          how the program ended, written by the sandbox's own first process
    cgroup        the cgroup directories of this container, for whoever adopts it

For a fork of a template all but the last lie in a folder `forked`, which the caller moves to where the template sees
it, behind a link.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

SIGNAL_BASE = 128
"""A program that signal n ended has the exit code 128 + n, as in every shell."""

CAUSES = {
    signals.SIGSEGV: "it crashed in native code (a C extension, a driver, or a corrupted model file)",
    signals.SIGBUS: "it lost a memory mapping: a file shrank under it, or /dev/shm is full",
    signals.SIGABRT: "native code gave up (a failed assertion or a C++ exception)",
    signals.SIGFPE: "native code divided by zero",
    signals.SIGILL: "native code was built for another CPU than this one",
    signals.SIGSYS: "it made a system call that its sandbox forbids",
    signals.SIGTERM: "it was asked to stop",
    signals.SIGKILL: "it was killed by the server or by someone on this machine",
}


class Feature(StrEnum):
    """What a container may need that not every tier can give."""

    MOUNTS = "mounts"
    """Volumes and files at absolute paths."""
    MEMORY_LIMIT = "memory_limit"
    PIDS_LIMIT = "pids_limit"
    CPU_LIMIT = "cpu_limit"
    BLOCK_NETWORK = "block_network"
    LAYERS = "layers"
    """An image with a root file system of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A host file or directory `source` shown at the absolute path `target`."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RootLayers:
    """A root file system of an image's own, in place of the host's /usr."""

    lower: tuple[str, ...]
    """Host folders, topmost first. Their marks of deleted files are overlayfs's own."""
    upper: str = ""
    """Gets what is written, and then the root is writable: builds only. Empty: the root is read-only."""
    work: str = ""
    """Empty folder of the same file system as `upper`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    container_id: str
    argv: tuple[str, ...]
    """The program; a name without a slash is looked up in the PATH of `env`."""
    env: tuple[tuple[str, str], ...]
    """The complete environment of the program: nothing is inherited. The process tier alone sets HOME and
    TMPDIR."""
    folder: str
    """The container's own host directory; see the module's text."""
    mounts: tuple[Mount, ...] = ()
    """Mounted in this order; mount points are made where missing."""
    cwd: str = "/"
    memory_limit: int | None = None
    """MiB, of all processes together where cgroups work."""
    pids_limit: int | None = None
    cpu_shares: float = 0.125
    """Requested cores: the weight of this container when cores are scarce."""
    cpu_limit: float | None = None
    """Cores."""
    gpus: tuple[int, ...] = ()
    """Indices of the host's GPUs; the process tier cannot hide the others."""
    block_network: bool = False
    template: bool = False
    """The program forks containers into namespaces of their own (`fork`): the sandbox lives until the last of them has
    ended, though the program ends before, and its seccomp filter lets it make namespaces and mounts."""
    root: RootLayers | None = None
    """None: the host's /usr, read-only, with a synthesised /etc."""
    build: bool = False
    """The program builds an image: it is uid 0 of a user namespace with many ids and with all capabilities in there,
    so that apt and dpkg can chown, chroot and mount. Home and /tmp are then the root's own."""

    def features(self) -> tuple[Feature, ...]:
        """What this container needs that not every tier has."""
        wanted = {
            Feature.MOUNTS: bool(self.mounts),
            Feature.MEMORY_LIMIT: self.memory_limit is not None,
            Feature.PIDS_LIMIT: self.pids_limit is not None,
            Feature.CPU_LIMIT: self.cpu_limit is not None,
            Feature.BLOCK_NETWORK: self.block_network,
            Feature.LAYERS: self.root is not None or self.build,
        }
        return tuple(feature for feature, needed in wanted.items() if needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    code: int
    """0-255; 128 + n when signal n ended the program."""
    signal: int | None = None
    oom_killed: bool = False
    peak_memory: int = 0
    """MiB: the largest seen by `usage()` or by the kernel for one process; the cgroup's own after an OOM
    kill."""

    def describe(self) -> str:
        """One sentence: what happened, and the likely cause."""
        if self.oom_killed:
            return (
                f"the kernel killed it for passing its memory limit (peak {self.peak_memory} MiB): "
                "raise memory= or load less at once"
            )
        if self.signal is None:
            return f"it exited with code {self.code}"
        try:
            name = signals.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        cause = CAUSES.get(signals.Signals(self.signal)) if name in signals.Signals.__members__ else None
        return f"it was ended by {name}" + (f": {cause}" if cause else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    cpu_seconds: float
    memory: int
    """MiB now, without page cache that the kernel would drop on demand."""
    peak_memory: int
    """MiB, the largest `memory` that this object has seen."""


class SandboxProcess(Protocol):
    """One running (or ended) sandbox."""

    @property
    def container_id(self) -> str: ...

    @property
    def pid(self) -> int:
        """Host pid of the sandbox's first process, which is not the program itself but its parent."""
        ...

    @property
    def pid_started(self) -> int:
        """Its start in clock ticks since boot (0 on macOS): with the pid it names one process for ever."""
        ...

    @property
    def forked(self) -> bool:
        """It is a fork of a template: `pid` is the program itself."""
        ...

    @property
    def outputs(self) -> tuple[int, int]:
        """Non-blocking read ends of `out` and `err`, held so that no output is lost however early the program
        ends.

        End of file = no process has them open. They belong to this object and are closed by `close()`.
        """
        ...

    async def wait(self) -> Exit:
        """Waits for the end of every process in it. May be called often, and from several tasks of one
        loop."""
        ...

    def kill(self) -> None:
        """SIGKILL to everything in it. Returns at once; calling it again, or after the end, does nothing."""
        ...

    def usage(self) -> Usage: ...

    def close(self) -> None:
        """Frees the descriptors held here. Does not stop the sandbox."""
        ...


class PreparedFork(Protocol):
    """A container's folder, limits and outputs, waiting for the process that a template forks."""

    rlimits: list[tuple[int, int]]

    def open_groups(self) -> list[int]:
        """Descriptors through which the fork joins its control groups. The caller closes them."""
        ...

    def started(self, pid: int) -> SandboxProcess:
        """`pid`: on this host. OSError if it has ended."""
        ...

    def last_words(self) -> str:
        """What a process that could not become the container wrote to stderr."""
        ...

    def abandon(self) -> None:
        """There will be no process."""
        ...


class Forks(Protocol):
    def prepare(self, spec: SandboxSpec) -> PreparedFork:
        """What a fork of a template needs to be this container, blocking, about a millisecond. OSError when the machine
        refuses; nothing is left then but files in the folder."""
        ...


class Sandbox(Protocol):
    """One tier of isolation."""

    name: str

    def check(self) -> tuple[str, ...]:
        """Really tries it (some 30 ms, blocking). One sentence per problem, each with what to do; empty: it
        works."""
        ...

    def missing(self, features: Iterable[Feature]) -> tuple[str, ...]:
        """One sentence per feature that this tier cannot give here, with the way to get it."""
        ...

    async def start(self, spec: SandboxSpec) -> SandboxProcess:
        """Starts the program; when it returns, the program has been executed.

        Raises InvalidError for what `missing` names, a bad mount, program or cwd, and ResourceError when the
        machine refuses. A cancelled start leaves nothing running.
        """
        ...

    @property
    def forks(self) -> Forks | None:
        """How templates fork containers in this tier. None: all start cold."""
        ...

    def adopt(self, container_id: str, folder: str, pid: int, pid_started: int) -> SandboxProcess | None:
        """Takes over a sandbox that another process started. None: it is gone (`records.read_exit` knows
        how)."""
        ...

    def remove_leftovers(self) -> None:
        """Removes the empty control groups of dead containers. Folders are the caller's."""
        ...
