"""Connections of the server as tests see them: what was sent is kept, descriptors are duplicated as a socket would."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lorry.wire.frames import HEADER, HEADER_SIZE, Flag, Kind, pack_reference, unpack_reference


class FakePeer:
    """Enough of `server.peers.Peer`. `got`: (header fields, body) of each frame."""

    def __init__(self, identity: Any = None) -> None:
        self.closed = False
        self.identity = identity
        self.backlog = 0
        self.got: list[tuple[tuple[Any, ...], bytes]] = []
        self.mapped: dict[int, int] = {}
        """Descriptors that it was passed, by segment number: a receiver maps and closes them."""
        self.events: list[Any] = []

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        if self.closed:
            return
        header = HEADER.unpack_from(data)
        self.got.append((header, data[HEADER_SIZE:]))
        for descriptor in descriptors:
            number, _ = unpack_reference(data[-24:] if header[1] & Flag.SELECT else data[HEADER_SIZE:])
            os.fstat(descriptor)  # it must be open
            self.mapped[number] = descriptor

    def event(self, number: int, value: Any) -> None:
        self.events.append((number, value))

    def read_rest(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def kinds(self, kind: Kind) -> list[tuple[tuple[Any, ...], bytes]]:
        return [frame for frame in self.got if frame[0][0] == kind]


def memory_file(content: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, content)
    return fd


def reference(number: int, size: int = 10) -> bytes:
    return pack_reference(number, [size])


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
