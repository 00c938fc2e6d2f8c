"""The lookout gives what `receive` gives, and stays awake where that was faster."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest

from lorry.wire import lookout
from lorry.wire.endpoint import Endpoint, Frame
from lorry.wire.frames import Kind, pack
from lorry.wire.lookout import PERIOD, TRIAL, Lookout


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield near, far
    near.close()
    far.close()


def test_every_frame_arrives_in_order(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    watch = Lookout()
    for number in range(2 * PERIOD):
        far.send(pack(Kind.RESULT, number=number))
        frame = watch.receive(near, Endpoint())
        assert frame is not None
        assert frame.number == number


def test_the_end_of_the_connection_is_none(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.close()
    watch = Lookout()
    assert [watch.receive(near, Endpoint()) for _ in range(PERIOD)] == [None] * PERIOD


def test_a_frame_that_does_not_come_in_time_is_slept_for(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, _far = pair
    flags_seen: list[int] = []

    def receive(_sock: socket.socket, _endpoint: Endpoint, flags: int = 0) -> Frame | None:
        flags_seen.append(flags)
        if flags:
            raise BlockingIOError
        return None

    monkeypatch.setattr(lookout, "receive", receive)
    monkeypatch.setattr(lookout, "LOOK_SECONDS", -1.0)
    assert lookout.look(near, Endpoint()) is None
    assert flags_seen == [socket.MSG_DONTWAIT, 0]


@pytest.mark.parametrize(("asleep", "awake", "chosen"), [(80.0, 50.0, "look"), (64.0, 60.0, "receive")])
def test_the_faster_way_is_taken_after_a_trial_of_both(
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    asleep: float,
    awake: float,
    chosen: str,
) -> None:
    """Microseconds per frame, told to the lookout by a clock of our own."""
    now = 0.0
    ways: list[str] = []

    def taking(way: str, micros: float) -> None:
        nonlocal now
        now += micros * 1e-6
        ways.append(way)

    monkeypatch.setattr(lookout, "receive", lambda _sock, _endpoint: taking("receive", asleep))
    monkeypatch.setattr(lookout, "look", lambda _sock, _endpoint: taking("look", awake))
    monkeypatch.setattr(lookout.time, "perf_counter", lambda: now)
    watch = Lookout()
    for _ in range(2 * PERIOD):
        watch.receive(pair[0], Endpoint())
    period = ["receive"] * TRIAL + ["look"] * TRIAL + [chosen] * (PERIOD - 2 * TRIAL)
    assert [(way, len(list(run))) for way, run in itertools.groupby(ways)] == [
        (way, len(list(run))) for way, run in itertools.groupby(period * 2)
    ]
