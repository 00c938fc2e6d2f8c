"""Connections of the worker: non-blocking SOCK_SEQPACKET sockets driven by `add_reader`.

asyncio's and uvloop's transports drop passed descriptors silently, so sockets are read and written here directly.
A peer that does not read gets its frames queued; `backlog` tells how many, for whoever must slow down.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import socket
import struct
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lorry.wire.control import Assembler, encode, encode_error
from lorry.wire.endpoint import ATTACHED
from lorry.wire.frames import HEADER, HEADER_SIZE, MAX_FRAME, Header, Kind

_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_ANCILLARY = socket.CMSG_SPACE(4 * 4)
_CREDENTIALS = struct.Struct("3i")
_HARD_BACKLOG = 65_536
_HARD_BYTES = 512 << 20
"""Frames, or bytes, queued for a peer that does not read at all; then it is cut off."""


class Peer:
    """One connection. `handler(peer, header, body, descriptors)` gets each frame, `on_close(peer)` the end."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        handler: Callable[[Peer, Header, bytes, Sequence[int]], None],
        on_close: Callable[[Peer], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._handler = handler
        self._on_close = on_close
        self._queue: deque[tuple[bytes, Sequence[int]]] = deque()
        self._queued = 0
        self._attached = False
        """The next frame brings descriptors."""
        self.closed = False
        self.pid, self.uid, _gid = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        self.identity: Any = None
        """What hello made of it: a client session or a container."""
        self.assembler = Assembler()
        loop.add_reader(sock, self._readable)

    def become(self, identity: Any, handler: Callable[[Peer, Header, bytes, Sequence[int]], None], limit: int) -> None:
        """It said who it is: from now on `handler` gets its frames, and a control message may have `limit` bytes."""
        self.identity = identity
        self._handler = handler
        self.assembler.limit = limit

    @property
    def backlog(self) -> int:
        return len(self._queue)

    def _readable(self) -> None:
        try:
            if self._attached:
                data, ancillary, _flags, _address = self._sock.recvmsg(MAX_FRAME, _ANCILLARY, _CLOSE_ON_EXEC)
                self._attached = False
            else:
                data, ancillary = self._sock.recv(MAX_FRAME), []
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, ancillary = b"", []
        descriptors = _descriptors(ancillary) if ancillary else ()
        if len(data) < HEADER_SIZE:  # end of file, or not our protocol
            close_all(descriptors)
            self.close()
            return
        if data[0] == Kind.ATTACHED:
            close_all(descriptors)
            self._attached = True
            return
        try:
            self._handler(self, HEADER.unpack_from(data), data[HEADER_SIZE:], descriptors)
        except Exception:
            # A fault of ours, or a frame that nobody foresaw: this connection ends, so that its other side acts on
            # it (a client asks again, a container's inputs run again) instead of waiting for ever.
            traceback.print_exc()
            self.close()

    def read_rest(self) -> None:
        """Handle what a dead peer had sent before its end."""
        while not self.closed and _readable_now(self._sock):
            self._readable()

    def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send it now, or queue it. `descriptors` stay the caller's; they are duplicated if queued."""
        if descriptors:
            self.send(ATTACHED)
        if self.closed:
            return
        if not self._queue:
            try:
                if descriptors:
                    self._send(frame, descriptors)
                else:
                    self._sock.send(frame)
                return
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._writable)
            except OSError:
                self.close()
                return
        self._queued += len(frame)
        if len(self._queue) >= _HARD_BACKLOG or self._queued > _HARD_BYTES:
            self.close()
            return
        self._queue.append((frame, [os.dup(fd) for fd in descriptors]))

    def _send(self, frame: bytes, descriptors: Sequence[int]) -> None:
        if descriptors:
            rights = array.array("i", descriptors)
            self._sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        else:
            self._sock.send(frame)

    def _writable(self) -> None:
        while self._queue:
            frame, descriptors = self._queue[0]
            try:
                self._send(frame, descriptors)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            close_all(descriptors)
            self._queue.popleft()
            self._queued -= len(frame)
        self._loop.remove_writer(self._sock)

    def reply(self, number: int, value: Any) -> None:
        for frame in encode(Kind.REPLY, number, value):
            self.send(frame)

    def reply_error(self, number: int, problem: BaseException) -> None:
        for frame in encode_error(number, problem):
            self.send(frame)

    def event(self, number: int, value: Any) -> None:
        for frame in encode(Kind.EVENT, number, value):
            self.send(frame)

    def close(self) -> None:
        """End the connection. Idempotent; `on_close` runs once."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _frame, descriptors in self._queue:
            close_all(descriptors)
        self._queue.clear()
        self._on_close(self)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def accept_on(
    listener: socket.socket, loop: asyncio.AbstractEventLoop, connected: Callable[[socket.socket], None]
) -> None:
    """Accept connections of an inherited listening socket for as long as the loop runs."""
    listener.setblocking(False)

    def acceptable() -> None:
        try:
            sock, _address = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no descriptors left: leave it in the backlog, try at the next wake-up
            loop.remove_reader(listener)
            loop.call_later(0.1, loop.add_reader, listener, acceptable)
            return
        connected(sock)

    loop.add_reader(listener, acceptable)


def _readable_now(sock: socket.socket) -> bool:
    """By poll: select knows only the first 1,024 descriptors, and a server may have more."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))
