"""A started or adopted sandbox: watching it, killing it, measuring it. The same for every tier."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

from lorry.sandbox.cgroups import REMOVE_PAUSE, REMOVE_ROUNDS, Group, remove_blocking
from lorry.sandbox.interface import Exit, Usage
from lorry.sandbox.procfs import family, is_running
from lorry.sandbox.records import UNKNOWN_END, files_of, make_exit, open_outputs, read_group, read_record
from lorry.sandbox.spawn import end_blocking, open_pidfd, reap

MIB = 1 << 20
POLL = 0.05
"""Seconds between looks at a process where the system has no pidfd."""
KILL_ROUNDS = 20


class RunningSandbox:
    forked = False

    def __init__(
        self,
        *,
        container_id: str,
        folder: str,
        pid: int,
        pid_started: int,
        pidfd: int | None,
        group: Group,
        outputs: tuple[int, int],
        pid_namespace: bool,
    ) -> None:
        self.container_id = container_id
        self.pid = pid
        self.pid_started = pid_started
        self.outputs = outputs
        self._folder = folder
        self._pidfd = pidfd
        self._group = group
        self._pid_namespace = pid_namespace
        self._peak = 0
        self._exit: Exit | None = None
        self._watch: asyncio.Task[Exit] | None = None
        self._closed = False

    async def wait(self) -> Exit:
        if self._exit is not None:
            return self._exit
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(self._finish())
        # Shielded: the watch belongs to all waiters, and one that is cancelled must not end it for the
        # others.
        return await asyncio.shield(self._watch)

    def kill(self) -> None:
        if self._exit is not None or self._ended():
            return
        if self._pid_namespace:
            self._signal(signal.SIGKILL)  # the kernel takes the whole namespace with its pid 1
            return
        self._group.kill()
        for _ in range(KILL_ROUNDS):
            members = [member.pid for member in family(self.pid) if member.pid != self.pid]
            if not members:
                break
            for pid in members:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        # The first process itself stays: it reaps, ends what was forked meanwhile, and records the end.
        self._signal(signal.SIGCONT)

    def usage(self) -> Usage:
        cpu, memory = self._group.usage(self.pid)
        if self._exit is not None:
            memory = 0  # what the group still has is the kernel's, not the program's
            if record := read_record(self._folder):
                cpu = max(cpu, record.cpu_seconds)
        self._peak = max(self._peak, memory)
        return Usage(cpu_seconds=cpu, memory=_mib(memory), peak_memory=_mib(self._peak))

    def end_blocking(self) -> None:
        """Waits for a sandbox that is about to end, without a loop: probes."""
        if self._pidfd is not None:
            end_blocking(self._pidfd)
        self.close()
        remove_blocking(self._group)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for fd in (*self.outputs, self._pidfd):
            if fd is not None:
                os.close(fd)
        self._pidfd = None

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)

    def _ended(self) -> bool:
        return not is_running(self.pid, self.pid_started)

    async def _finish(self) -> Exit:
        await self._end()
        code = reap(self._pidfd) if self._pidfd is not None else None
        record = read_record(self._folder)
        oom_kills = self._group.oom_kills()
        peak = max(_mib(self._peak), record.peak_kib >> 10 if record else 0)
        if oom_kills:
            peak = _mib(self._group.peak()) or peak
        known = record.code if record else UNKNOWN_END if code is None else code
        self._exit = make_exit(known, oom_kills=oom_kills, peak_mib=peak)
        await self._remove_group()
        return self._exit

    async def _end(self) -> None:
        if self._pidfd is None:
            while not self._ended():
                await asyncio.sleep(POLL)
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._pidfd, _settle, ended)
        try:
            await ended
        finally:
            loop.remove_reader(self._pidfd)

    async def _remove_group(self) -> None:
        for _ in range(REMOVE_ROUNDS):
            self._group.kill()
            if self._group.remove():
                return
            await asyncio.sleep(REMOVE_PAUSE)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _mib(size: int) -> int:
    return -(-size // MIB)


def adopt(
    container_id: str,
    folder: str,
    pid: int,
    pid_started: int,
    *,
    pid_namespace: bool,
    kind: type[RunningSandbox] = RunningSandbox,
) -> RunningSandbox | None:
    """Takes over a sandbox by its first process. None, and its control group is removed, if that has ended, or
    nobody can hear it any more: then it is killed."""
    group = read_group(folder)
    pidfd = None
    with suppress(ProcessLookupError):
        pidfd = open_pidfd(pid)
    # Only now, with the descriptor held, does the comparison say something about the process that it names.
    running = is_running(pid, pid_started)
    outputs = None
    with suppress(OSError):  # what a module does at its import may take them away: see `records`
        outputs = open_outputs(files_of(folder)) if running else None
    if outputs is None:
        if running:
            os.kill(pid, signal.SIGKILL)
        if pidfd is not None:
            os.close(pidfd)
        group.kill()
        group.remove()
        return None
    return kind(
        container_id=container_id,
        folder=folder,
        pid=pid,
        pid_started=pid_started,
        pidfd=pidfd,
        group=group,
        outputs=outputs,
        pid_namespace=pid_namespace,
    )
