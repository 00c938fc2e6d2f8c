"""How `spawn_map` speaks to the server, with a server made of one socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import first_hour
import pytest
from server_home import ServerHome

from lorry.errors import StorageFullError
from lorry.sdk.mapping import SPAWN_CHUNK, Batch
from lorry.sdk.spawn_map import WINDOW, Spawning
from lorry.wire.endpoint import Endpoint, Frame, receive
from lorry.wire.frames import Flag, Kind, pack


class FakeChannel:
    """As much of a Channel as a `spawn_map` needs; each connection is served by a function of its own."""

    def __init__(self, *servers: Callable[[socket.socket], None]) -> None:
        self.endpoint = Endpoint()
        self.asked: list[str] = []
        self.sock: socket.socket | None = None
        self._servers = list(servers)
        self._threads: list[threading.Thread] = []
        self.open()

    def ask(self, method: str, _params: dict[str, Any]) -> None:
        self.asked.append(method)

    def open(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._threads.append(threading.Thread(target=self._servers.pop(0), args=(theirs,)))
        self._threads[-1].start()

    def close(self) -> None:
        assert self.sock is not None
        self.sock.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)


def chunks_of(sock: socket.socket, count: int) -> list[Frame]:
    frames = [receive(sock, Endpoint()) for _ in range(count)]
    assert all(frame is not None and frame.kind == Kind.CHUNK for frame in frames)
    return frames  # type: ignore[return-value]


def acknowledge(sock: socket.socket, frame: Frame, *, status: int = 0, body: bytes = b"") -> None:
    sock.send(pack(Kind.CHUNK_ACK, number=frame.number, call=frame.call, status=status) + body)


class NoFunction:
    _method = None


def spawn(channel: FakeChannel, inputs: int) -> None:
    batch = Batch(NoFunction(), {}, starred=False)  # type: ignore[arg-type]
    Spawning(channel, batch).spawn(1, iter(range(inputs)))  # type: ignore[arg-type]


def test_a_window_of_chunks_is_sent_before_the_first_is_acknowledged_and_all_before_it_returns() -> None:
    steps: list[str] = []

    def serve(sock: socket.socket) -> None:
        with sock:
            first = chunks_of(sock, WINDOW)
            steps.append("a window came")
            for frame in reversed(first):
                acknowledge(sock, frame)
            (last,) = chunks_of(sock, 1)
            assert (last.number, last.count) == (WINDOW * SPAWN_CHUNK, 7)
            steps.append("the last is acknowledged")
            acknowledge(sock, last)

    channel = FakeChannel(serve)
    spawn(channel, WINDOW * SPAWN_CHUNK + 7)
    steps.append("it returned")
    channel.join()
    assert steps == ["a window came", "the last is acknowledged", "it returned"]
    assert channel.asked == ["map_open", "map_close"]


def test_after_a_lost_connection_only_what_was_not_acknowledged_is_sent_again() -> None:
    again: list[tuple[int, int]] = []

    def dies(sock: socket.socket) -> None:
        with sock:
            frames = chunks_of(sock, 3)
            acknowledge(sock, frames[1])

    def lives(sock: socket.socket) -> None:
        with sock:
            for frame in chunks_of(sock, 2):
                again.append((frame.number, frame.flags & Flag.AGAIN))
                acknowledge(sock, frame)

    channel = FakeChannel(dies, lives)
    spawn(channel, 3 * SPAWN_CHUNK)
    channel.join()
    assert again == [(0, Flag.AGAIN), (2 * SPAWN_CHUNK, Flag.AGAIN)]


def test_a_refusal_is_raised_and_nothing_is_closed_as_if_it_were_whole() -> None:
    def full(sock: socket.socket) -> None:
        with sock:
            frames = chunks_of(sock, 2)
            body = json.dumps({"error": "StorageFullError", "message": "the disk is full"}).encode()
            acknowledge(sock, frames[0], status=1, body=body)

    channel = FakeChannel(full)
    with pytest.raises(StorageFullError, match="full"):
        spawn(channel, 2 * SPAWN_CHUNK)
    channel.join()
    assert channel.asked == ["map_open"]


def test_spawn_map_survives_the_death_of_the_worker(own_server: ServerHome) -> None:
    def inputs() -> Iterator[int]:
        for n in range(12_000):
            if n == 6_000:
                os.kill(own_server.worker_pid(), signal.SIGKILL)
            yield n

    with first_hour.app.run():
        call = first_hour.same.spawn_map(inputs())
        assert call.num_inputs() == 12_000
        assert [call.get(index=n) for n in (0, 5_999, 6_000, 11_999)] == [0, 5_999, 6_000, 11_999]
