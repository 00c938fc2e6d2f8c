"""The log of a build, on its way to a client that may be slower than the build."""

from __future__ import annotations

from lorry.server.peers import Peer

MOST_WAITING = 1000
"""Frames that wait for the client. Beyond, lines are left out: a build does not wait for those who watch it, and a
client that is far behind would be cut off."""


class BuildLines:
    def __init__(self, peer: Peer, number: int) -> None:
        self._peer = peer
        self._number = number
        self._left_out = 0

    def __call__(self, line: str) -> None:
        if self._peer.backlog >= MOST_WAITING:
            self._left_out += 1
            return
        self.tell_rest()
        self._peer.event(self._number, {"line": line})

    def tell_rest(self) -> None:
        """Called at the end too."""
        if self._left_out:
            self._peer.event(self._number, {"line": f"({self._left_out} lines left out)"})
            self._left_out = 0
