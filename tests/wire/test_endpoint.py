"""Both ends of one connection: values of any size, and no descriptor left open whatever arrives."""

from __future__ import annotations

import array
import gc
import os
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorry.wire import pickling
from lorry.wire.endpoint import ATTACHED, Endpoint, Frame, Message, receive, receive_locked, send
from lorry.wire.frames import HEADER, MAX_INLINE, Flag, Kind, pack, pack_reference, pack_selection
from lorry.wire.segments import TWO_CORES


class Pair:
    """Two endpoints that are connected."""

    def __init__(self) -> None:
        self.left, self.right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self.left, self.right):
            sock.settimeout(5)
        self.sender, self.receiver = Endpoint(), Endpoint()

    def pass_on(self, payload: tuple[bytes, list[memoryview]], selection: bytes = b"") -> Frame:
        flags = Flag.SELECT if selection else 0
        send(self.left, self.sender.encode(Kind.RESULT, payload, flags=flags, number=5, selection=selection))
        while True:
            frame = receive(self.right, self.receiver)
            assert frame is not None
            if frame.kind == Kind.RESULT:  # before it come DROPs
                return frame

    def give_back(self) -> None:
        for number in self.receiver.maps.unused():
            send(self.right, [Message([pack(Kind.RELEASE, number=number)], [])])
            receive(self.left, self.sender)

    def close(self) -> None:
        self.left.close()
        self.right.close()
        self.sender.pool.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1, MAX_INLINE - 1, MAX_INLINE, MAX_INLINE + 1, 3_000_000])
@pytest.mark.parametrize("selection", [b"", pack_selection(((0, 3), (7, 9)))])
def test_payloads_of_every_size_arrive(pair: Pair, size: int, selection: bytes) -> None:
    frame = pair.pass_on((b"x" * size, []), selection)
    assert b"".join(pair.receiver.pieces(frame)) == b"x" * size
    assert bool(frame.flags & Flag.SEGMENT) == (size + len(selection) > MAX_INLINE)
    assert (frame.kind, frame.number, frame.count) == (Kind.RESULT, 5, 1)


def test_a_large_array_is_written_whole_by_two_threads(pair: Pair) -> None:
    values = np.arange(TWO_CORES // 8 + 1001)
    for _ in range(2):  # the second time over the first
        frame = pair.pass_on(pickling.dumps(values))
        assert np.array_equal(pickling.loads(pair.receiver.pieces(frame)), values)
        pair.give_back()
        values = values[::-1].copy()


def test_arrays_are_not_copied_on_arrival_and_their_segment_is_used_again(pair: Pair) -> None:
    for round_ in range(3):
        frame = pair.pass_on(pickling.dumps(np.full(200_000, round_)))
        values = pickling.loads(pair.receiver.pieces(frame))
        assert values[0] == values[-1] == round_
        assert not values.flags.owndata
        pair.give_back()
        assert len(pair.sender.pool._segments) == round_ + 1 if round_ == 0 else 1
        del values
        pair.give_back()
    assert len(pair.sender.pool._segments) == 1


def test_the_descriptor_of_a_segment_travels_once(pair: Pair) -> None:
    ancillaries = []
    for _ in range(3):
        messages = pair.sender.encode(Kind.RESULT, (b"x" * 100_000, []))
        ancillaries.append(len(messages[-1].ancillary))
        send(pair.left, messages)
        frame = receive(pair.right, pair.receiver)
        assert frame is not None
        pair.receiver.skip(frame)
        pair.give_back()
    assert ancillaries == [1, 0, 0]


def test_an_unwanted_answer_gives_its_segment_back(pair: Pair) -> None:
    pair.receiver.skip(pair.pass_on((b"x" * 100_000, [])))
    assert len(pair.receiver.maps.unused()) == 1


def test_after_renewal_the_descriptor_travels_again(pair: Pair) -> None:
    pair.receiver.skip(pair.pass_on((b"x" * 100_000, [])))
    pair.sender.renew()
    pair.receiver.renew()
    frame = pair.pass_on((b"y" * 100_000, []))
    assert bytes(pair.receiver.pieces(frame)[0][:2]) == b"yy"


def raw(sock: socket.socket, data: bytes, descriptors: list[int], *, announced: bool = True) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    if descriptors and announced:
        sock.send(ATTACHED)
    sock.sendmsg([data], rights)


MALFORMED = [
    b"short",
    pack(Kind.RESULT, flags=Flag.SEGMENT),
    pack(Kind.RESULT, flags=Flag.SEGMENT) + b"\1\0\0\0",
    pack(Kind.RESULT, flags=Flag.SEGMENT) + pack_reference(1, [5])[:-3],
    pack(Kind.RESULT, flags=Flag.SEGMENT | Flag.SELECT) + b"\xff\xff",
]


@pytest.mark.parametrize("data", MALFORMED)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_malformed_frame_leaves_no_descriptor_open(pair: Pair, data: bytes, count: int) -> None:
    before = open_descriptors()
    handles = [os.memfd_create("x") for _ in range(count)]
    raw(pair.left, data, handles)
    for handle in handles:
        os.close(handle)
    try:
        receive(pair.right, pair.receiver)
    except ValueError:
        pass
    assert open_descriptors() == before


def test_descriptors_that_no_payload_needs_are_closed(pair: Pair) -> None:
    before = open_descriptors()
    handle = os.memfd_create("x")
    raw(pair.left, pack(Kind.REPLY, number=1) + b"{}", [handle])
    os.close(handle)
    assert receive(pair.right, pair.receiver) is not None
    assert open_descriptors() == before


def test_descriptors_that_nobody_announced_do_not_arrive(pair: Pair) -> None:
    before = open_descriptors()
    handle = os.memfd_create("x")
    raw(pair.left, pack(Kind.REPLY, number=1) + b"{}", [handle] * 4, announced=False)
    os.close(handle)
    assert receive(pair.right, pair.receiver) is not None
    assert open_descriptors() == before


def test_what_was_announced_may_come_later(pair: Pair) -> None:
    pair.right.settimeout(None)
    announcement, message = pair.sender.encode(Kind.RESULT, (b"x" * 100_000, []))
    send(pair.left, [announcement])
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            receive(pair.right, pair.receiver, socket.MSG_DONTWAIT)
    send(pair.left, [message])
    frame = receive(pair.right, pair.receiver, socket.MSG_DONTWAIT)
    assert frame is not None
    assert b"".join(pair.receiver.pieces(frame)) == b"x" * 100_000


def test_an_empty_file_as_a_segment_is_refused(pair: Pair) -> None:
    before = open_descriptors()
    handle = os.memfd_create("x")
    raw(pair.left, pack(Kind.RESULT, flags=Flag.SEGMENT) + pack_reference(1, [5]), [handle])
    os.close(handle)
    with pytest.raises(ValueError):
        receive(pair.right, pair.receiver)
    assert open_descriptors() == before


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120))
def test_any_bytes_are_a_frame_or_a_value_error(pair: Pair, data: bytes) -> None:
    try:
        frame = pair.receiver.decode(data, [])
        pair.receiver.pieces(frame)
    except (ValueError, KeyError):
        return
    assert data[: HEADER.size] == HEADER.pack(*frame[:-1])


def test_the_end_of_a_connection_is_none(pair: Pair) -> None:
    pair.left.close()
    assert receive(pair.right, pair.receiver) is None


def test_waiting_for_a_frame_does_not_hold_the_lock(pair: Pair) -> None:
    lock = threading.Condition()
    found: list[Frame | None] = []
    thread = threading.Thread(target=lambda: found.append(receive_locked(pair.right, pair.receiver, lock)))
    thread.start()
    with lock:
        raw(pair.left, pack(Kind.REPLY, number=9), [])
    thread.join(5)
    assert found[0] is not None
    assert found[0].number == 9
