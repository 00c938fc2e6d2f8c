"""Containers that a template forks: what the server prepares for one, and how it watches it. See `fork`."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lorry.sandbox.cgroups import Group, remove_blocking
from lorry.sandbox.interface import Exit, SandboxSpec
from lorry.sandbox.limits import Limits
from lorry.sandbox.procfs import family, is_running, start_of
from lorry.sandbox.records import FORKED, open_outputs, prepare_folder, read_record, write_group
from lorry.sandbox.running import KILL_ROUNDS, RunningSandbox
from lorry.sandbox.spawn import open_pidfd
from lorry.sandbox.starting import limits_without_groups

RECORD_ROUNDS, RECORD_PAUSE = 50, 0.01
"""Its template reaps it and writes the record a moment after the pidfd has fired."""


class ForkedSandbox(RunningSandbox):
    """Its first process is the program itself. Orphans of it go to the template's sandbox, so they are found by their
    control group or their mount namespace, which no process in a container can change (seccomp)."""

    forked = True

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._namespace = _hold_namespace(self.pid, self.pid_started)

    def kill(self) -> None:
        if self._exit is not None:
            return
        self._group.kill()
        for _ in range(KILL_ROUNDS):
            members = family(self.pid) if not self._ended() else []
            for member in reversed(members):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(member.pid, signal.SIGKILL)
            if not members:
                break
        self._kill_orphans()

    async def _finish(self) -> Exit:
        await self._end()
        self._group.kill()
        self._kill_orphans()
        for _ in range(RECORD_ROUNDS):
            if read_record(self._folder) is not None:
                break
            await asyncio.sleep(RECORD_PAUSE)
        return await super()._finish()

    def close(self) -> None:
        super().close()
        if self._namespace is not None:
            os.close(self._namespace)
            self._namespace = None

    def _kill_orphans(self) -> None:
        if self._namespace is None or _same(self._namespace, "self"):  # never: a fork has its own before it says hello
            return
        for name in os.listdir("/proc"):
            with suppress(OSError):
                if name.isdigit() and _same(self._namespace, name):
                    os.kill(int(name), signal.SIGKILL)


def _hold_namespace(pid: int, started: int) -> int | None:
    """Its mount namespace, which lives as long as the descriptor: the kernel gives the number of one that has gone to
    the next one at once, and whoever lived in that would be taken for an orphan. None: it has ended, or may not be
    looked at."""
    try:
        held = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if not is_running(pid, started):
        os.close(held)
        return None
    return held


def _same(namespace: int, process: str) -> bool:
    ours, theirs = os.fstat(namespace), os.stat(f"/proc/{process}/ns/mnt")
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


@dataclass(slots=True, eq=False)
class PreparedFork:
    """Files, which the caller moves into the template's pool, a control group and outputs: they wait for a process."""

    spec: SandboxSpec
    group: Group
    outputs: tuple[int, int]
    rlimits: list[tuple[int, int]]

    def open_groups(self) -> list[int]:
        """Files through which the fork joins its control group; the caller closes them."""
        clone = self.group.clone_into
        return [
            os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            for path in (*self.group.joins, *([f"{clone}/cgroup.procs"] if clone else []))
        ]

    def started(self, pid: int) -> ForkedSandbox:
        """`pid`: on the host. ProcessLookupError if it has ended."""
        pidfd = open_pidfd(pid)
        return ForkedSandbox(
            container_id=self.spec.container_id,
            folder=self.spec.folder,
            pid=pid,
            pid_started=start_of(pid),
            pidfd=pidfd,
            group=self.group,
            outputs=self.outputs,
            pid_namespace=False,
        )

    def last_words(self) -> str:
        with suppress(BlockingIOError):
            return os.read(self.outputs[1], 4096).decode(errors="replace").strip()
        return ""

    def abandon(self) -> None:
        for fd in self.outputs:
            os.close(fd)
        remove_blocking(self.group)


@dataclass(frozen=True, slots=True)
class Forks:
    """What the server prepares for a fork, and how the tier's limits and user hold for it."""

    limits: Limits
    owner: int | None

    def prepare(self, spec: SandboxSpec) -> PreparedFork:
        files = f"{spec.folder}/{FORKED}"
        os.mkdir(files, 0o700)
        prepare_folder(files, self.owner)
        record = os.open(f"{files}/exit", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if self.owner is not None:
                os.fchown(record, self.owner, self.owner)
                os.chmod(files, 0o711)  # noqa: S103 - the fork passes through it, as another user
        finally:
            os.close(record)
        outputs = open_outputs(files)
        try:
            group = self.limits.make(spec)
            write_group(spec.folder, group)
        except BaseException:
            for fd in outputs:
                os.close(fd)
            raise
        return PreparedFork(spec, group, outputs, limits_without_groups(spec, self.limits, own_user_namespace=True))
