"""Files inside a sandbox: read and written as its own user, without a program of its image."""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from lorry.errors import AlreadyExistsError, ExecutionError, InvalidError, NotFoundError
from lorry.sdk.container_process import ContainerProcess
from lorry.sdk.steps import Ask, Steps, twin

MODES = {"r": ("read", ""), "w": ("write", "w"), "x": ("write", "x"), "a": ("write", "a")}
IN_MEMORY = 8 << 20
"""Bytes of an open file; what is larger lies in a temporary file."""
ERRNO = {2: NotFoundError, 17: AlreadyExistsError}


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFileEntry:
    """One entry of a folder. `type`: "file", "directory", "symlink" or "other"; `size` in bytes, `mtime` in Unix
    seconds."""

    name: str
    type: str
    size: int
    mtime: float


def _start(sandbox_id: str, verb: str, path: str, option: str = "") -> Steps[ContainerProcess]:
    path = os.fspath(path)
    if not path.startswith("/") or "\0" in path:
        raise InvalidError(f"a path in a sandbox is absolute, such as /tmp/data; {path!r} is not")
    params = {"container_id": sandbox_id, "file": [verb, path, option], "workdir": "/"}
    reply = yield Ask("exec_start", params)
    return ContainerProcess(reply["exec_id"], text=False, pty=False)


def _finish(process: ContainerProcess) -> Steps[None]:
    """Raises what went wrong."""
    if (yield from process._wait()) == 0:
        return
    words = (yield from process.stderr._read()).decode(errors="replace")
    number, _, text = words.partition(" ")
    cls = ERRNO.get(int(number) if number.isdigit() else 0, ExecutionError)
    raise cls(text or "the sandbox ended meanwhile")


def _sent(process: ContainerProcess) -> Steps[bool]:
    """Send what was written. False when nobody reads it: `_finish` says why."""
    try:
        yield from process.stdin._drain()
    except InvalidError:
        return False
    return True


def operate(sandbox_id: str, verb: str, path: str, option: str = "") -> Steps[bytes]:
    """One operation; what it gives."""
    process = yield from _start(sandbox_id, verb, path, option)
    data = yield from process.stdout._read()
    yield from _finish(process)
    return bytes(data)


def entries(listing: bytes) -> list[SandboxFileEntry]:
    found = []
    for row in listing.split(b"\0")[:-1]:
        kind, size, mtime, name = row.split(b" ", 3)
        found.append(
            SandboxFileEntry(
                name=name.decode(errors="surrogateescape"), type=kind.decode(), size=int(size), mtime=float(mtime)
            )
        )
    return found


class SandboxFile:
    """An open file of a sandbox, as `Sandbox.open` gives it. Reading sees the file as it was when it was opened;
    writing happens at `flush()` and `close()`."""

    def __init__(self, sandbox_id: str, path: str, mode: str) -> None:
        kind, binary = mode.replace("b", "").replace("t", ""), "b" in mode
        if kind not in MODES:
            raise InvalidError(f"mode {mode!r}: a file of a sandbox is opened with r, w, x or a, and b for bytes")
        self._sandbox_id = sandbox_id
        self._path = path
        self._verb, self._option = MODES[kind]
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - open until `close`
        # Counts characters, and never gives half of one.
        self._reader: IO[Any] = self._file if binary else io.TextIOWrapper(self._file, "utf-8", newline="\n")
        self._binary = binary
        self._made = False
        self._closed = False

    def _load(self) -> Steps[SandboxFile]:
        """Its content, or for one to be written its place in the sandbox."""
        try:
            yield from self._flush() if self._verb == "write" else self._fetch()
        except BaseException:
            self._file.close()
            raise
        return self

    def _fetch(self) -> Steps[None]:
        process = yield from _start(self._sandbox_id, "read", self._path)
        while piece := (yield from process.stdout._piece()):
            self._file.write(piece)
        yield from _finish(process)
        self._file.seek(0)

    def read(self, size: int = -1) -> Any:
        """Text, or bytes in a binary mode; at most `size` characters or bytes."""
        self._check("read")
        return self._reader.read(size)

    def readline(self) -> Any:
        self._check("read")
        return self._reader.readline()

    def readlines(self) -> list[Any]:
        return list(self)

    def __iter__(self) -> Any:
        while line := self.readline():
            yield line

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> None:
        self._check("read")
        self._reader.seek(offset, whence)

    def write(self, data: str | bytes) -> None:
        self._check("write")
        if isinstance(data, str) == self._binary:
            raise TypeError(
                f"a file in this mode takes {'bytes' if self._binary else 'text'}, not {type(data).__name__}"
            )
        self._file.write(data.encode() if isinstance(data, str) else data)

    def _check(self, verb: str) -> None:
        if self._closed:
            raise ValueError("the file is closed")
        if verb != self._verb:
            raise io.UnsupportedOperation(f"this file was not opened to {verb}")

    def _flush(self) -> Steps[None]:
        """Sends what was written since the last time."""
        if self._verb != "write" or (self._made and not self._file.tell()):
            return
        self._file.seek(0)
        process = yield from _start(self._sandbox_id, "write", self._path, "a" if self._made else self._option)
        while piece := self._file.read(1 << 20):
            process.stdin.write(piece)
            if not (yield from _sent(process)):
                break
        process.stdin.write_eof()
        yield from _sent(process)
        yield from _finish(process)
        self._made = True
        self._file.seek(0)
        self._file.truncate()

    flush = twin(_flush)

    def _close(self) -> Steps[None]:
        if not self._closed:
            self._closed = True
            try:
                yield from self._flush()
            finally:
                self._file.close()

    close = twin(_close)

    def __enter__(self) -> SandboxFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> SandboxFile:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close.aio()
