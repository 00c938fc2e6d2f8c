"""Frames: a fixed 40-byte header and a body that the server never looks into.

One frame is one message of a SOCK_SEQPACKET socket, at most 64 KiB, sent with one system call; a restart of
either side therefore never cuts one in half. Bodies that are larger travel in shared segments (`segments`).

    offset  0   kind     u8
            1   flags    u8
            2   status   u8    model.records.Status, or 0/1 for a reply that is a result or an error
            3   spare    u8
            4   number   u32   function number, chunk number, request number or segment number
            8   lease    u64   (epoch << 32 | counter): which dispatch of an input this is about
           16   call     16 bytes
           32   micros   u32   how long user code ran, in microseconds (capped at 2³²-1, about 71 minutes)
           36   count    u32   inputs in this frame
"""

from __future__ import annotations

import struct

from lorry.model.records import Selection

PROTOCOL_VERSION = 1
MAX_FRAME = 64 * 1024
HEADER = struct.Struct("<BBBBIQ16sII")
HEADER_SIZE = HEADER.size
MAX_INLINE = MAX_FRAME - HEADER_SIZE - 256
"""Bytes of payload that fit in a frame beside the largest selection that a client makes."""
NO_CALL = bytes(16)
Header = tuple[int, int, int, int, int, int, bytes, int, int]
"""The fields of HEADER in their order. Hot paths write them so: keywords cost a microsecond at each hop."""


class Kind:
    """What a frame is. Plain integers, as the flags: an IntFlag operation costs 0.6 µs, and a call has twenty."""

    REQUEST = 1
    """Control message, JSON body; answered by a REPLY of the same number."""
    REPLY = 2
    EVENT = 3
    """One item of a subscription, JSON body; number = the request that opened it."""
    SPAWN = 9
    """Client → server: a call of one input, journaled, then acknowledged with CHUNK_ACK."""
    CALL = 10
    """Client → server: run this one input now and send its result here. Not journaled."""
    CHUNK = 11
    """Client → server: inputs of a map. Journaled, then acknowledged."""
    CHUNK_ACK = 12
    INPUT = 13
    """Server → container: run these inputs under this lease."""
    RESULT = 14
    """Container → server → client."""
    RESULT_ACK = 15
    """Client → server: these results have arrived and may be forgotten."""
    CANCEL = 16
    TIMEOUT = 17
    """Server → container: if the input has run for `micros`/10⁶ s or more by your clock, stop it."""
    CREDIT = 18
    """Consumer of a generator → producer: `count` more values may come."""
    RELEASE = 20
    """Receiver → owner of a segment: nothing here refers to it any more."""
    DROP = 21
    """Owner → receiver: the segment is gone, unmap it."""
    ATTACHED = 22
    """The next frame brings descriptors: take it with recvmsg. Every other is taken with recv, which is quicker and
    loses descriptors that nobody announced."""


class Flag:
    SEGMENT = 1
    """The body refers to a segment instead of holding the payload."""
    STREAM = 2
    """The function is a generator: values arrive as RESULT frames of status YIELD."""
    LAST = 4
    """The lease ends with this frame."""
    BATCH = 8
    """The payload is a list of inputs, or of their results; without it, one."""
    AGAIN = 16
    """The client asks a second time, after it lost its connection."""
    SELECT = 32
    """The body starts with a selection of indices; without it all inputs of the chunk are meant."""
    MORE = 64
    """A control message that goes on in the next frame of the same number."""
    OUTPUT = 128
    """User code wrote to stdout or stderr since the last result: read it before delivering this."""


def pack(
    kind: int,
    *,
    flags: int = 0,
    status: int = 0,
    number: int = 0,
    lease: int = 0,
    call: bytes = NO_CALL,
    micros: int = 0,
    count: int = 0,
) -> bytes:
    """A header with named fields, for code off the hot path."""
    return HEADER.pack(kind, flags, status, 0, number, lease, call, micros, count)


_COUNT = struct.Struct("<H")
MAX_RANGES = 1024
"""Ranges in one selection on the wire: 8 KiB. A chunk has fewer inputs than would need more."""


def pack_selection(selection: Selection) -> bytes:
    """u16 number of ranges, then (low, high) pairs of u32."""
    flat = [edge for pair in selection for edge in pair]
    return struct.pack(f"<H{len(flat)}I", len(selection), *flat)


def unpack_selection(body: memoryview) -> tuple[Selection, memoryview]:
    """The selection at the start of `body` and what follows it. ValueError when malformed."""
    try:
        (ranges,) = _COUNT.unpack_from(body)
        flat = struct.unpack_from(f"<{2 * ranges}I", body, 2)
    except struct.error as broken:
        raise ValueError("a selection is cut short") from broken
    selection = tuple(zip(flat[::2], flat[1::2], strict=True))
    edge = 0
    for low, high in selection:
        if not edge <= low < high:
            raise ValueError(f"selection {selection} is not sorted, disjoint ranges")
        edge = high
    return selection, body[2 + 8 * ranges :]


_REFERENCE = struct.Struct("<IIQ")


def pack_reference(number: int, pieces: list[int]) -> bytes:
    """Body of a frame with Flag.SEGMENT: which segment, and the lengths of the pieces in it."""
    return struct.pack(f"<IIQ{len(pieces)}Q", number, len(pieces), sum(pieces), *pieces)


def unpack_reference(body: memoryview | bytes) -> tuple[int, tuple[int, ...]]:
    """(segment number, piece lengths). ValueError when malformed."""
    try:
        number, count, total = _REFERENCE.unpack_from(body)
        if count > MAX_FRAME // 8:
            raise ValueError(f"{count} pieces do not fit in a frame")
        pieces = struct.unpack_from(f"<{count}Q", body, _REFERENCE.size)
    except struct.error as broken:
        raise ValueError("a segment reference is cut short") from broken
    if sum(pieces) != total:
        raise ValueError("a segment reference contradicts itself")
    return number, pieces


def renumber_reference(body: memoryview | bytes, number: int) -> bytes:
    """The same reference under another segment number: each hop has numbers of its own."""
    return struct.pack("<I", number) + bytes(body[4:])
