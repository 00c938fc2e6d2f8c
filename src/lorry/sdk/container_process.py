"""`ContainerProcess`: a program that was started in a running container, and its streams."""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from lorry.errors import InvalidError, NotFoundError, ResourceError
from lorry.sdk.steps import Ask, Steps, twin

UNREAD = 64 << 20
"""Bytes of one stream that are kept here for a reader who is busy with the other one."""
WRITE_PIECE = 1 << 20
LONGEST_LINE = 1 << 20
"""Bytes; a longer line is given in parts."""
POLL = 0.2
"""Seconds between looks at a program whose output another thread reads."""


class _Received:
    """What has come of both streams and is not read yet. Several threads and tasks may fetch at once: a reply counts
    from where it begins, so that the part which another one has brought is passed over."""

    def __init__(self, exec_id: str, names: tuple[str, ...]) -> None:
        self.exec_id = exec_id
        self._lock = threading.Lock()
        self._offsets = dict.fromkeys(names, 0)
        self._kept: dict[str, bytearray] = {name: bytearray() for name in names}
        self._open = set(names)
        self.has_reader: set[str] = set()

    def fetch(self, name: str) -> Steps[None]:
        """More of one stream, and of the others what comes with it."""
        wanted = [other for other in self._open if other == name or not self.is_full(other)]
        offsets = {other: self._offsets[other] for other in wanted}
        reply = yield Ask("exec_read", {"exec_id": self.exec_id, "offsets": offsets})
        with self._lock:
            for other, (text, end) in reply.items():
                data = base64.b64decode(text)
                self._kept[other] += data[self._offsets[other] - offsets[other] :]
                self._offsets[other] = max(self._offsets[other], offsets[other] + len(data))
                if end:
                    self._open.discard(other)

    def is_open(self, name: str) -> bool:
        return name in self._open

    def is_full(self, name: str) -> bool:
        return len(self._kept[name]) >= UNREAD

    def take(self, name: str) -> bytes:
        with self._lock:
            data = bytes(self._kept[name])
            self._kept[name].clear()
        return data

    def take_line(self, name: str) -> bytes | None:
        """The next whole line, or the rest after the end; None when more must be fetched first."""
        with self._lock:
            kept = self._kept[name]
            end = kept.find(b"\n", 0, LONGEST_LINE) + 1
            if not end:
                if len(kept) <= LONGEST_LINE and self.is_open(name):
                    return None
                end = _whole_characters(kept, LONGEST_LINE)
            line = bytes(kept[:end])
            del kept[:end]
        return line

    def drain(self) -> Steps[bool]:
        """One fetch of what has room. False when there is nothing to wait for: all is read, or nothing has room."""
        for name in self._open - self.has_reader:
            if self.is_full(name):
                raise ResourceError(
                    f"the program has written more than {UNREAD >> 20} MiB to {name} that nobody has read, and waits: "
                    f"read .{name} before .wait()"
                )
        for name in sorted(self._open):
            if not self.is_full(name):
                yield from self.fetch(name)
                return True
        return False


def _whole_characters(data: bytearray, most: int) -> int:
    """How many of at most so many bytes are whole characters of UTF-8; all of them where it is something else."""
    for end in range(most, most - 4, -1):
        if end >= len(data) or data[end] & 0xC0 != 0x80:
            return min(end, len(data))
    return most


class StreamReader:
    """stdout or stderr of a program. `read()` gives all of it, iteration its lines as they come."""

    def __init__(self, received: _Received, name: str, text: bool) -> None:
        self._received = received
        self._name = name
        self._text = text

    def _read(self) -> Steps[Any]:
        """Everything up to the end of the stream, without what was read before: text, or bytes with `text=False`."""
        self._received.has_reader.add(self._name)
        pieces = []
        while self._received.is_open(self._name):
            yield from self._received.fetch(self._name)
            pieces.append(self._received.take(self._name))
        pieces.append(self._received.take(self._name))
        return self._decoded(b"".join(pieces))

    read = twin(_read)

    def _piece(self) -> Steps[bytes]:
        """What has come since the last time, at least a byte; empty at the end."""
        self._received.has_reader.add(self._name)
        while not (data := self._received.take(self._name)) and self._received.is_open(self._name):
            yield from self._received.fetch(self._name)
        return data or self._received.take(self._name)

    read_piece = twin(_piece)

    def _next(self) -> Steps[bytes]:
        """The next line; empty at the end."""
        self._received.has_reader.add(self._name)
        while (line := self._received.take_line(self._name)) is None:
            yield from self._received.fetch(self._name)
        return line

    _next_line = twin(_next)

    def _decoded(self, data: bytes) -> Any:
        return data.decode(errors="replace") if self._text else data

    def __iter__(self) -> Iterator[Any]:
        while line := self._next_line():
            yield self._decoded(line)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while line := await self._next_line.aio():
            yield self._decoded(line)


class StreamWriter:
    """stdin of a program. What is written goes out with `drain()`."""

    def __init__(self, exec_id: str) -> None:
        self._exec_id = exec_id
        self._kept = bytearray()
        self._end = False
        self._ended = False

    def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Keeps it for the next `drain()`."""
        if self._end:
            raise InvalidError("stdin is closed: nothing can be written after write_eof()")
        self._kept += data.encode() if isinstance(data, str) else data

    def write_eof(self) -> None:
        """No more will come. The next `drain()` closes the program's stdin."""
        self._end = True

    def _drain(self) -> Steps[None]:
        """Sends what was written, and returns when the program, or the pipe before it, has taken it."""
        while self._kept or (self._end and not self._ended):
            piece = bytes(self._kept[:WRITE_PIECE])
            del self._kept[:WRITE_PIECE]
            last = self._end and not self._kept
            params = {"exec_id": self._exec_id, "data": base64.b64encode(piece).decode(), "end": last}
            try:
                yield Ask("exec_write", params)
            except NotFoundError:
                if piece:
                    raise
            self._ended = last

    drain = twin(_drain)


class ContainerProcess:
    """A program that `Sandbox.exec` has started. It ends with the program that started it, and with the server."""

    def __init__(self, exec_id: str, *, text: bool, pty: bool) -> None:
        names = ("stdout",) if pty else ("stdout", "stderr")
        self._exec_id = exec_id
        self._received = _Received(exec_id, names)
        self._code: int | None = None
        self.stdin = StreamWriter(exec_id)
        self.stdout = StreamReader(self._received, "stdout", text)
        self.stderr = self.stdout if pty else StreamReader(self._received, "stderr", text)

    def __repr__(self) -> str:
        return f"<lorry.ContainerProcess {self._exec_id}>"

    @property
    def returncode(self) -> int:
        """Of an ended program; 124 when its `timeout` was over, 128 + n when signal n ended it."""
        if self._code is None:
            raise InvalidError("the program's end is not known yet: call wait() or poll() first")
        return self._code

    def _wait(self) -> Steps[int]:
        """Its exit code, once it has ended. Output that comes meanwhile is kept for `read()`."""
        while self._code is None:
            if not (yield from self._received.drain()):
                still_read = any(self._received.is_open(name) for name in ("stdout", "stderr"))
                yield from self._ask_code(POLL if still_read else None)
        return self._code

    wait = twin(_wait)

    def _poll(self) -> Steps[int | None]:
        """Its exit code, or None while it runs."""
        if self._code is None:
            yield from self._ask_code(0)
        return self._code

    poll = twin(_poll)

    def _ask_code(self, seconds: float | None) -> Steps[None]:
        reply = yield Ask("exec_wait", {"exec_id": self._exec_id, "wait": seconds})
        self._code = reply["code"]

    def _kill(self, signal: int = 9) -> Steps[None]:
        """Send a signal to it and its process group; nothing happens if it has ended."""
        if self._code is None:
            yield Ask("exec_kill", {"exec_id": self._exec_id, "signal": int(signal)})

    kill = twin(_kill)

    def _resize(self, rows: int, columns: int) -> Steps[None]:
        """The size of its terminal."""
        yield Ask("exec_resize", {"exec_id": self._exec_id, "terminal": [rows, columns]})

    resize = twin(_resize)


def start_program(container_id: str, argv: tuple[str, ...], options: dict[str, Any]) -> Steps[ContainerProcess]:
    """`options`: env, secrets (ids), workdir, timeout, terminal (rows and columns, or None), text."""
    text = options.pop("text", True)
    reply = yield Ask("exec_start", {"container_id": container_id, "argv": list(argv), **options})
    return ContainerProcess(reply["exec_id"], text=text, pty=options.get("terminal") is not None)
