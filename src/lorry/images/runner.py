"""How a build command is run. The builder names every path that it needs; what encloses it is not its care.

`DirectRunner` is a plain child process. The server wires one that encloses the same command in a sandbox.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

_UMASK_022 = ("/bin/sh", "-c", 'umask 022; exec "$0" "$@"')
"""uvloop takes no umask=, and changing the server's own would race with its other threads."""
_LAST_WORDS = 1.0
"""Seconds for the rest of the output after the command ended; then whatever holds the pipe is killed."""
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_LINE_END = re.compile(r"\r\n|\n|\r")
_LONGEST_LINE = 1 << 16
"""Characters; what goes on longer is cut into several lines."""


class BuildRunner(Protocol):
    async def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        writable: Sequence[str],
        readable: Sequence[str],
        on_line: Callable[[str], None],
    ) -> int:
        """Runs `argv` with exactly `env` and umask 022; the exit status, negative for a signal.

        Each folder of `writable` exists, is one mount (hard links do not cross mounts), and must be writable
        for the user that the command runs as. Paths of `readable` may be missing. `on_line` gets every line
        of output, without its end. When the awaiting task is cancelled, all of the command's processes are
        dead before this returns.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RootCommand:
    """A command that runs as uid 0 of a namespace with many ids, in an image's root file system."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str = "/"
    lower: tuple[str, ...] = ()
    """Folders of layers, topmost first. Empty: the command sees the host's /usr, as other builds do."""
    upper: str = ""
    """Gets what the command writes; empty: nothing is kept."""
    work: str = ""
    readable: tuple[tuple[str, str], ...] = ()
    """(host path, path inside)."""
    writable: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class RootRunner(Protocol):
    def no_roots(self) -> str:
        """Why root file systems cannot be built here and what to do, as the end of a sentence; empty if they can."""
        ...

    async def own(self, path: str) -> None:
        """Gives an empty folder of this process to uid 0 of the namespace."""
        ...

    async def run_in_root(self, command: RootCommand, on_line: Callable[[str], None]) -> int:
        """As `BuildRunner.run`."""
        ...


class DirectRunner:
    """A child process in a session of its own, with the rights of this process."""

    async def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        writable: Sequence[str],
        readable: Sequence[str],
        on_line: Callable[[str], None],
    ) -> int:
        output = _Output(LineSplitter(on_line))
        transport, _ = await asyncio.get_running_loop().subprocess_exec(
            lambda: output,
            *_UMASK_022,
            *argv,
            env=dict(env),
            cwd=writable[0] if writable else "/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            await asyncio.shield(output.exited)
            await asyncio.wait({output.closed}, timeout=_LAST_WORDS)
        finally:
            if not (output.exited.done() and output.closed.done()):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(transport.get_pid(), signal.SIGKILL)
                await output.exited
            transport.close()
        status = transport.get_returncode()
        assert status is not None
        return status


class _Output(asyncio.SubprocessProtocol):
    """Exit and end of output are two events: a daemon that a build script left behind keeps the pipe open."""

    def __init__(self, splitter: LineSplitter) -> None:
        self._splitter = splitter
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._splitter.feed(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._splitter.close()
        if not self.closed.done():
            self.closed.set_result(None)

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)


class LineSplitter:
    """Bytes in, whole lines out: no colours, and of a line that redraws itself with `\\r` every state."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = _LINE_END.split(self._rest + self._decoder.decode(data))
        for line in lines:
            self._emit(line)
        if len(self._rest) > _LONGEST_LINE:
            self._emit(self._rest)
            self._rest = ""

    def close(self) -> None:
        self._emit(self._rest + self._decoder.decode(b"", final=True))
        self._rest = ""

    def _emit(self, line: str) -> None:
        if text := _ESCAPE.sub("", line).rstrip():
            self._on_line(text)
