from __future__ import annotations

from typing import Any, cast

from lorry.server.build_lines import MOST_WAITING, BuildLines
from lorry.server.peers import Peer


class SlowPeer:
    """Reads nothing unless it is told to."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.backlog = 0

    def event(self, number: int, value: Any) -> None:
        assert number == 7
        self.events.append(value["line"])
        self.backlog += 1


def test_a_client_that_is_far_behind_gets_fewer_lines_and_is_told_how_many() -> None:
    peer = SlowPeer()
    lines = BuildLines(cast(Peer, peer), 7)
    for number in range(100_000):
        lines(str(number))
    assert peer.backlog == MOST_WAITING
    peer.backlog = 0
    lines("after")
    lines.tell_rest()
    assert peer.events[MOST_WAITING:] == [f"({100_000 - MOST_WAITING} lines left out)", "after"]


def test_what_is_left_out_at_the_end_is_told_at_the_end() -> None:
    peer = SlowPeer()
    lines = BuildLines(cast(Peer, peer), 7)
    for number in range(MOST_WAITING + 3):
        lines(str(number))
    lines.tell_rest()
    assert peer.events[-1] == "(3 lines left out)"
