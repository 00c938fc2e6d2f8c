"""Programs that clients start in running containers: their streams, their ends.

Nothing of a program's output is read before somebody asks for it, and at most one PIECE per stream is in this
process: a program that writes faster than its reader reads waits, as at any pipe. A client says how much it has, so
that a reply which was lost is given again. An exec belongs to the process that started it and to this worker, and ends
with either.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lorry import errors
from lorry.ids import new_id
from lorry.sandbox.enter import TIOCSWINSZ
from lorry.sandbox.entering import Command, Entered, enter
from lorry.sandbox.interface import SIGNAL_BASE, Sandbox
from lorry.server.container import Container
from lorry.server.provision import Provision
from lorry.server.user_sandboxes import TIMED_OUT

PIECE = 1 << 18
"""Bytes of one stream that are in memory, and that one reply carries; pipes are made as large."""
F_SETPIPE_SZ = 1031
MOST_ENDED = 256
"""Programs that have ended and whose output nobody has read to its end. Older ones are forgotten."""
ENTERING = 16
"""Programs that are being started at once. Their threads are no others': a sandbox can make each of them wait for
entering.PATIENCE."""
END_OF_INPUT = b"\x04"
"""What ends the input of a program on a terminal."""
OWN_VARIABLES = ("LORRY_TOKEN", "LORRY_SOCKET", "LORRY_SOURCE")
"""Of the runner; what a person starts beside it is not the function and does not speak in its name."""


class Output:
    """One stream of a program. Whoever waits is called back through `changed`."""

    def __init__(self, fd: int, changed: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):  # a terminal, or a user who has many pipes
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIECE)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self._armed = False
        self.start = 0
        """How much the reader has."""
        self.held = b""
        self.ended = False

    def acknowledge(self, offset: int) -> bool:
        """False: another request of the same reader was faster, and it has more by now."""
        if offset < self.start:
            return False
        if offset > self.start + len(self.held):
            raise errors.InvalidError(f"the stream is at {self.start}: nobody can have {offset} bytes of it")
        self.held = self.held[offset - self.start :]
        self.start = offset
        return True

    def fill(self, last: bool) -> None:
        """Get something, now or later. `last`: its program has ended, so what is not there will not come; a process
        that it left behind may have the stream open for ever."""
        if self.held or self.ended:
            return
        self._disarm()
        self._read(last)
        if not self.held and not self.ended:
            self._armed = True
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        self._disarm()
        self._read(False)
        self._changed()

    def _read(self, last: bool) -> None:
        try:
            self.held = os.read(self._fd, PIECE)
        except BlockingIOError:
            if last:
                self.close()
            return
        except OSError:  # the far end of a terminal is closed
            self.held = b""
        if not self.held:
            self.close()

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_reader(self._fd)

    def close(self) -> None:
        self._disarm()
        if not self.ended:
            self.ended = True
            os.close(self._fd)


@dataclass(slots=True, eq=False)
class Exec:
    exec_id: str
    container_id: str
    client: int
    """Pid."""
    entered: Entered
    terminal: bool
    outputs: dict[str, Output] = field(default_factory=dict)
    code: int | None = None
    overdue: bool = False
    waiters: set[asyncio.Future[None]] = field(default_factory=set)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    following: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    told: bool = False
    """Its code was delivered."""

    def changed(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self, seconds: float | None) -> bool:
        """Wait for something new. False when the time is over."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
            return waiter.done()
        finally:
            self.waiters.discard(waiter)

    def signal(self, number: int) -> None:
        if self.code is None:
            with contextlib.suppress(OSError):
                self.entered.control.send(bytes([number]))

    @property
    def finished(self) -> bool:
        return self.told and all(output.ended and not output.held for output in self.outputs.values())


class Execs:
    def __init__(self, sandbox: Sandbox, provision: Provision) -> None:
        self._sandbox = sandbox
        self._provision = provision
        self._loop = asyncio.get_running_loop()
        self._execs: dict[str, Exec] = {}
        self._clients: dict[int, int] = {}
        """Pid → pidfd of those who have started something."""
        self._threads = ThreadPoolExecutor(ENTERING, "lorry-enter")

    def find(self, exec_id: str) -> Exec:
        found = self._execs.get(exec_id)
        if found is None:
            raise errors.NotFoundError(
                f"no program {exec_id!r}: it ended with the server or with who started it, or is long over "
                f"(of programs whose output nobody reads, the last {MOST_ENDED} are kept)"
            )
        return found

    async def start(
        self,
        container: Container,
        client: int,
        *,
        argv: tuple[str, ...] = (),
        file: tuple[str, str, str] | None = None,
        env: Mapping[str, str],
        workdir: str | None = None,
        terminal: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> Exec:
        """One program, or one `file` operation (see sandbox.enter_files)."""
        if container.process is None or not container.alive:
            raise errors.NotFoundError(f"{container.container_id} is not running ({container.state.value})")
        described = await self._provision.describe(container)
        variables = {name: value for name, value in described.env if name not in OWN_VARIABLES} | dict(env)
        if container.spec.code.module:
            variables.setdefault("PYTHONPATH", self._provision.python_path)
        command = Command(argv=argv, file=file, env=variables, cwd=workdir or described.cwd, terminal=terminal)
        isolate = self._provision.isolated
        entered = await self._loop.run_in_executor(
            self._threads, enter, self._sandbox, container.process, described, command, isolate
        )
        found = Exec(new_id("ex"), container.container_id, client, entered, terminal is not None)
        for name, fd in (("stdout", entered.stdout), ("stderr", entered.stderr)):
            if fd is not None:
                found.outputs[name] = Output(fd, found.changed)
        self._execs[found.exec_id] = found
        self._loop.add_reader(entered.control, self._ended, found)
        found.following = self._loop.create_task(self._follow(container, found))
        self._watch_client(client)
        if timeout is not None:
            found.timer = self._loop.call_later(timeout, self._overdue, found)
        self._tidy()
        return found

    async def _follow(self, container: Container, found: Exec) -> None:
        """It ends with its container, also where no namespace and no control group sees to that."""
        await container.gone.wait()
        found.signal(signal.SIGKILL)

    # Streams

    async def read(self, found: Exec, offsets: Mapping[str, int]) -> dict[str, tuple[bytes, bool]]:
        """Name → (data from the offset on, whether that is the end), as soon as one of the streams has either. Nothing
        for offsets that are overtaken."""
        wanted = {name: found.outputs[name] for name in offsets if name in found.outputs}
        if not all(output.acknowledge(offsets[name]) for name, output in wanted.items()):
            return {}
        while True:
            for output in wanted.values():
                output.fill(last=found.code is not None)
            ready = {name: (o.held, o.ended) for name, o in wanted.items() if o.held or o.ended}
            if ready or not wanted:
                return ready
            await found.change(None)

    async def write(self, found: Exec, data: bytes, end: bool) -> None:
        """To its stdin, and back when it has taken all of it. Nobody reads there any more: InvalidError."""
        async with found.writing:
            left = memoryview(data + END_OF_INPUT if end and found.terminal else data)
            while left:
                # Looked up each time: whoever closes it meanwhile gives its number to another file.
                if found.entered.stdin < 0:
                    raise errors.InvalidError("the program does not read its stdin any more")
                try:
                    left = left[os.write(found.entered.stdin, left) :]
                except BlockingIOError:
                    await self._writable(found)
                except OSError:
                    self._close_input(found)
            if end and not found.terminal:
                self._close_input(found)

    async def _writable(self, found: Exec) -> None:
        """Or its end: a process that it left behind may keep the stream open, and never read."""
        if found.code is not None:
            raise errors.InvalidError("the program has ended")
        self._loop.add_writer(found.entered.stdin, found.changed)
        try:
            await found.change(None)
        finally:
            if found.entered.stdin >= 0:
                self._loop.remove_writer(found.entered.stdin)

    def _close_input(self, found: Exec) -> None:
        if found.entered.stdin >= 0:
            self._loop.remove_writer(found.entered.stdin)
            os.close(found.entered.stdin)
            found.entered.stdin = -1

    def resize(self, found: Exec, rows: int, columns: int) -> None:
        if found.terminal and found.entered.stdin >= 0:
            size = b"".join(number.to_bytes(2, "little") for number in (rows, columns, 0, 0))
            with contextlib.suppress(OSError):
                fcntl.ioctl(found.entered.stdin, TIOCSWINSZ, size)

    # Ends

    async def wait(self, found: Exec, seconds: float | None) -> int | None:
        """Its exit code; None when the time is over."""
        deadline = None if seconds is None else self._loop.time() + seconds
        while found.code is None:
            left = None if deadline is None else deadline - self._loop.time()
            if left is not None and left <= 0:
                return None
            await found.change(left)
        found.told = True
        if found.finished:
            self._forget(found)
        return found.code

    def kill(self, found: Exec, number: int = signal.SIGKILL) -> None:
        found.signal(number)

    def _overdue(self, found: Exec) -> None:
        if found.code is None:
            found.overdue = True
            found.signal(signal.SIGKILL)

    def _ended(self, found: Exec) -> None:
        """The joiner says how its program ended, or has ended without a word: it was killed."""
        try:
            words = found.entered.control.recv(64).split()
        except BlockingIOError:
            return
        except OSError:
            words = []
        code = int(words[1]) if len(words) == 2 else -signal.SIGKILL
        if found.following is not None:
            found.following.cancel()
        if found.timer is not None:  # it would keep all this until then
            found.timer.cancel()
        self._loop.remove_reader(found.entered.control)
        found.entered.control.close()
        self._loop.run_in_executor(self._threads, found.entered.joiner.wait)
        found.code = TIMED_OUT if found.overdue else code if code >= 0 else SIGNAL_BASE - code
        if not found.terminal:
            self._close_input(found)
        found.changed()

    def _watch_client(self, client: int) -> None:
        if client and client not in self._clients:
            try:
                handle = os.pidfd_open(client)
            except OSError:
                self._client_gone(client)
                return
            self._clients[client] = handle
            self._loop.add_reader(handle, self._client_gone, client)

    def _client_gone(self, client: int) -> None:
        handle = self._clients.pop(client, None)
        if handle is not None:
            self._loop.remove_reader(handle)
            os.close(handle)
        for found in [found for found in self._execs.values() if found.client == client]:
            found.signal(signal.SIGKILL)
            self._forget(found)

    def _tidy(self) -> None:
        ended = [found for found in self._execs.values() if found.code is not None]
        for found in ended[: max(0, len(ended) - MOST_ENDED)]:
            self._forget(found)

    def _forget(self, found: Exec) -> None:
        """`_ended` still comes, if it has not."""
        self._execs.pop(found.exec_id, None)
        self._close_input(found)
        for output in found.outputs.values():
            output.close()
        found.changed()
