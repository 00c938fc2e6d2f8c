"""One end of a connection that carries values: frames with payloads, inline or in segments.

Pure but for the segments: `encode` gives what to send, `decode` takes what arrived. A blocking client, an
asyncio client and the runner drive the same object with their own socket calls.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from lorry.wire.frames import (
    HEADER,
    HEADER_SIZE,
    MAX_FRAME,
    MAX_INLINE,
    NO_CALL,
    Flag,
    Header,
    Kind,
    pack,
    pack_reference,
    unpack_reference,
)
from lorry.wire.pickling import Piece
from lorry.wire.segments import SegmentMap, SegmentPool

Ancillary = list[tuple[int, int, "array.array[int]"]]
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
"""As a plain int: an operation on the enum costs 1 µs."""
ATTACHED = pack(Kind.ATTACHED)
ANCILLARY_SIZE = socket.CMSG_SPACE(4 * 4)


class Frame(NamedTuple):
    kind: int
    flags: int
    status: int
    spare: int
    number: int
    lease: int
    call: bytes
    micros: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls on a frame
    body: bytes
    """What follows the header, selection included. For a payload use `Endpoint.pieces`."""


class Message(NamedTuple):
    """One frame ready for `sendmsg(buffers, ancillary)`."""

    buffers: list[bytes]
    ancillary: Ancillary


class Endpoint:
    """Segments and framing of one connection."""

    def __init__(self, folder: str | None = None) -> None:
        self.pool = SegmentPool(folder=folder)
        self.maps = SegmentMap()
        self.attached = False
        """The next frame brings descriptors."""

    def encode(
        self,
        kind: int,
        payload: tuple[bytes, Sequence[Piece]],
        *,
        flags: int = 0,
        status: int = 0,
        number: int = 0,
        lease: int = 0,
        call: bytes = NO_CALL,
        micros: int = 0,
        count: int = 1,
        selection: bytes = b"",
    ) -> list[Message]:
        """The frames that carry `payload`: one, preceded by DROP frames if the pool had to make room."""
        header = (kind, flags, status, 0, number, lease, call, micros, count)
        first, buffers = payload
        if buffers or len(first) + len(selection) > MAX_INLINE:
            return self._in_segment(header, payload, selection)
        packed = HEADER.pack(*header)
        return [Message([packed, selection, first] if selection else [packed, first], [])]

    def send(
        self, sock: socket.socket, header: Header, payload: tuple[bytes, Sequence[Piece]], selection: bytes = b""
    ) -> None:
        """`encode` and send on a blocking socket, the shortest way. ConnectionError when the other side is gone."""
        first, buffers = payload
        if buffers or len(first) + len(selection) > MAX_INLINE:
            send(sock, self._in_segment(header, payload, selection))
        else:
            sock.send(HEADER.pack(*header) + selection + first)  # a copy costs less than the buffers of sendmsg

    def _in_segment(self, header: Header, payload: tuple[bytes, Sequence[Piece]], selection: bytes) -> list[Message]:
        first, buffers = payload
        segment, dropped = self.pool.write([first, *buffers])
        kind, flags, *others = header
        packed = HEADER.pack(kind, flags | Flag.SEGMENT, *others)
        reference = pack_reference(segment.number, [len(first), *map(len, buffers)])
        ancillary: Ancillary = []
        messages = [Message([pack(Kind.DROP, number=old)], []) for old in dropped]
        if not segment.sent:
            segment.sent = True
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [segment.fd]))]
            messages.append(Message([ATTACHED], []))
        return [*messages, Message([packed, selection, reference], ancillary)]

    def decode(self, data: bytes, ancillary: Sequence[tuple[int, int, bytes]]) -> Frame:
        """One received frame. A descriptor that came with it is mapped under the segment that it names.

        ValueError when it is malformed; its descriptors are closed then."""
        if len(data) < HEADER_SIZE:
            _close(_descriptors(ancillary))
            raise ValueError(f"a frame of {len(data)} bytes has no header")
        frame: Frame = tuple.__new__(Frame, (*HEADER.unpack_from(data), data[HEADER_SIZE:]))  # _make costs twice that
        if ancillary:
            self._receive_descriptors(frame, ancillary)
        elif frame.kind == Kind.DROP:
            self.maps.drop(frame.number)
        elif frame.kind == Kind.RELEASE:
            self.pool.release(frame.number)
        return frame

    def _receive_descriptors(self, frame: Frame, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        descriptors = _descriptors(ancillary)
        if not frame.flags & Flag.SEGMENT or len(descriptors) != 1:
            _close(descriptors)
            return
        try:
            number, _ = unpack_reference(payload_body(frame))
        except ValueError:
            _close(descriptors)
            raise
        self.maps.add(number, descriptors[0])

    def pieces(self, frame: Frame) -> list[Piece]:
        """The payload of a frame. Views of a segment stay valid until nothing refers to them."""
        if not frame.flags & (Flag.SEGMENT | Flag.SELECT):
            return [frame.body]
        body = payload_body(frame)
        if frame.flags & Flag.SEGMENT:
            number, lengths = unpack_reference(body)
            return list(self.maps.pieces(number, lengths))
        return [body]

    def skip(self, frame: Frame) -> None:
        """A payload that nobody wants any more: its segment counts as used and left, so that it is released."""
        if frame.flags & Flag.SEGMENT:
            self.pieces(frame)

    def renew(self) -> None:
        """The connection was made anew: the other side knows nothing of earlier segments."""
        self.attached = False
        self.pool.forget_receivers()
        self.maps.clear()


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> array.array[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found


def _close(descriptors: array.array[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def payload_body(frame: Frame) -> bytes:
    """The body behind the selection, if there is one."""
    if not frame.flags & Flag.SELECT:
        return frame.body
    ranges = int.from_bytes(frame.body[:2], "little")
    return frame.body[2 + 8 * ranges :]


def receive(sock: socket.socket, endpoint: Endpoint, flags: int = 0) -> Frame | None:
    """One frame from a blocking (or, with MSG_DONTWAIT, a ready) socket. None when the other side is gone."""
    try:
        data, ancillary = _take(sock, endpoint, flags)
    except ConnectionError:
        return None
    return endpoint.decode(data, ancillary) if data else None


def receive_locked(sock: socket.socket, endpoint: Endpoint, lock: AbstractContextManager[Any]) -> Frame | None:
    """As `receive`, for an endpoint that another thread sends through: it waits outside the lock, decodes inside."""
    try:
        data, ancillary = _take(sock, endpoint, 0)
    except ConnectionError:
        return None
    with lock:
        return endpoint.decode(data, ancillary) if data else None


def _take(sock: socket.socket, endpoint: Endpoint, flags: int) -> tuple[bytes, Sequence[tuple[int, int, bytes]]]:
    if not endpoint.attached:
        data = sock.recv(MAX_FRAME, flags)
        if not data or data[0] != Kind.ATTACHED:
            return data, ()
        endpoint.attached = True
    data, ancillary, _flags, _address = sock.recvmsg(MAX_FRAME, ANCILLARY_SIZE, flags | _CLOSE_ON_EXEC)
    endpoint.attached = False
    return data, ancillary


def send(sock: socket.socket, messages: Sequence[Message]) -> None:
    """Send frames on a blocking socket. BrokenPipeError or ConnectionResetError when the other side is gone."""
    for buffers, ancillary in messages:
        sock.sendmsg(buffers, ancillary)
