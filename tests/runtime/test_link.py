"""The connection of a container, when the server is another one and has something to say at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorry.runtime import link as link_module
from lorry.runtime.link import Link
from lorry.wire.control import encode
from lorry.wire.frames import HEADER, Kind, pack


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Of a server that greets everybody, with a CANCEL before its greeting; the first connection it drops."""
    place = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(place)
        listener.listen()
        peers: list[socket.socket] = []

        def serve() -> None:
            for lease in (1, 2):
                try:
                    peer, _ = listener.accept()
                except OSError:  # the test is over
                    return
                peers.append(peer)
                number = HEADER.unpack_from(peer.recv(1 << 16))[4]
                peer.send(pack(Kind.CANCEL, lease=lease))
                for buffers in encode(Kind.REPLY, number, {}):
                    peer.send(buffers)
                if lease == 1:
                    peer.close()

        server = threading.Thread(target=serve)
        server.start()
        yield place
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
        for peer in peers:
            peer.close()


def test_a_nudge_while_it_reconnects_takes_nothing_away(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is told to stop just as it comes back: the signal finds it waiting for the greeting."""
    link, receive, nested = Link(path, "ct-1", "t", list), link_module.receive, []

    def nudged(sock: socket.socket, endpoint: Any, flags: int = 0) -> Any:
        if not flags:
            nested.append(link.poll())
        return receive(sock, endpoint, flags)

    link.connect()
    link._early.clear()
    assert link.sock.recv(1, socket.MSG_PEEK) == b"", "it is dropped"
    monkeypatch.setattr(link_module, "receive", nudged)
    frame = link.poll()
    assert frame is not None
    assert (frame.kind, frame.lease) == (Kind.CANCEL, 2)
    assert set(nested) == {None}
    assert link.poll() is None
    link.sock.close()
