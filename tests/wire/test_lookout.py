"""The lookout gives what `receive` gives, and stops looking when that is in vain."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from lorry.wire import lookout
from lorry.wire.endpoint import Endpoint
from lorry.wire.frames import Kind, pack
from lorry.wire.lookout import MAX_PAUSE, Lookout


class CountingSocket(socket.socket):
    looks = 0
    """Receptions that do not wait, counted when they are over."""

    def recvmsg(
        self, size: int, ancillary: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
        try:
            return super().recvmsg(size, ancillary, flags)
        finally:
            self.looks += bool(flags & socket.MSG_DONTWAIT)


@pytest.fixture
def pair() -> Iterator[tuple[CountingSocket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    counting = CountingSocket(near.family, near.type, fileno=near.detach())
    yield counting, far
    counting.close()
    far.close()


def send_once_it_sleeps(waiter: CountingSocket, far: socket.socket, number: int) -> threading.Thread:
    """Sends from another thread, which waits until `waiter` has looked in vain."""
    looks = waiter.looks

    def send() -> None:
        while waiter.looks == looks:
            pass
        far.send(pack(Kind.RESULT, number=number))

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_a_frame_that_is_here_is_taken_at_the_first_look(pair: tuple[CountingSocket, socket.socket]) -> None:
    near, far = pair
    watch = Lookout()
    for number in range(3):
        far.send(pack(Kind.RESULT, number=number))
        frame = watch.receive(near, Endpoint())
        assert frame is not None
        assert frame.number == number
    assert near.looks == 3


def test_after_a_look_in_vain_frames_are_slept_for(
    pair: tuple[CountingSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "LOOK_SECONDS", -1.0)  # one look, then sleep
    near, far = pair
    watch = Lookout()
    pauses = []
    for _ in range(8):
        sender = send_once_it_sleeps(near, far, 7)
        assert watch.receive(near, Endpoint()) is not None
        sender.join()
        looks, pause = near.looks, 0
        while watch._left:
            far.send(pack(Kind.RESULT))
            assert watch.receive(near, Endpoint()) is not None
            pause += 1
        assert near.looks == looks
        pauses.append(pause)
    assert pauses == [1, 3, 7, 15, 31, 63, MAX_PAUSE, MAX_PAUSE]
    far.send(pack(Kind.RESULT))
    watch.receive(near, Endpoint())
    assert watch._pause == 0, "a look that finds something ends the caution"


def test_the_end_of_the_connection_is_none(pair: tuple[CountingSocket, socket.socket]) -> None:
    near, far = pair
    far.close()
    assert Lookout().receive(near, Endpoint()) is None
