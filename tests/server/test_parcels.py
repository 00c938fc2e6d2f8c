"""Segments on their way through the server: released exactly once, closed exactly once, whoever vanishes when."""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_peers import FakePeer, memory_file, open_descriptors, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.errors import InvalidError, NotFoundError
from lorry.server.parcels import Broker, Parcel, Spool
from lorry.wire.frames import Flag, Kind, pack_reference

HEADER = (Kind.RESULT, 0, 0, 0, 0, 0, bytes(16), 0, 1)


def receive(broker: Broker, peer: FakePeer, number: int = 1, *, fresh: bool = True) -> Parcel:
    descriptors = [memory_file(b"x" * 64)] if fresh else []
    return broker.receive(peer, Flag.SEGMENT, reference(number), descriptors)  # type: ignore[arg-type]


def send(broker: Broker, peer: FakePeer, parcel: Parcel) -> None:
    broker.send(peer, HEADER, parcel)  # type: ignore[arg-type]


def releases(peer: FakePeer) -> list[int]:
    return [header[4] for header, _ in peer.kinds(Kind.RELEASE)]


def last_number(peer: FakePeer) -> int:
    return int(struct.unpack_from("<I", peer.got[-1][1])[0])


def test_an_inline_payload_passes_as_it_is() -> None:
    broker, peer = Broker(), FakePeer()
    parcel = broker.receive(peer, 0, b"body", [])  # type: ignore[arg-type]
    send(broker, peer, parcel)
    assert peer.got[0][1] == b"body"
    assert len(broker) == 0


def test_the_owner_hears_once_when_the_last_user_is_done() -> None:
    broker, owner, one, two = Broker(), FakePeer(), FakePeer(), FakePeer()
    parcel = receive(broker, owner)
    broker.hold(parcel, "queue")
    send(broker, one, parcel)
    send(broker, two, parcel)
    broker.let_go(parcel, "queue")
    number = last_number(one)
    broker.released(one, number)  # type: ignore[arg-type]
    assert releases(owner) == []
    broker.released(two, number)  # type: ignore[arg-type]
    assert releases(owner) == [1]
    for peer in (one, two, FakePeer()):  # said again, or by a stranger
        broker.released(peer, number)  # type: ignore[arg-type]
    broker.let_go(parcel, "queue")
    assert releases(owner) == [1]
    broker.peer_gone(owner)  # type: ignore[arg-type]


def test_a_segment_is_passed_once_per_receiver_and_dropped_for_all() -> None:
    broker, owner, peer = Broker(), FakePeer(), FakePeer()
    before = open_descriptors()
    parcel = receive(broker, owner)
    for _ in range(2):
        send(broker, peer, parcel)
        broker.released(peer, last_number(peer))  # type: ignore[arg-type]
        parcel = receive(broker, owner, fresh=False)
    assert len(peer.mapped) == 1
    broker.owner_dropped(owner, 1)  # type: ignore[arg-type]
    assert len(peer.kinds(Kind.DROP)) == 1
    assert open_descriptors() == before


def test_a_faulty_owner_that_drops_a_segment_in_use_cannot_close_it_under_its_readers() -> None:
    broker, owner, peer = Broker(), FakePeer(), FakePeer()
    before = open_descriptors()
    parcel = receive(broker, owner)
    broker.hold(parcel, "queue")
    broker.owner_dropped(owner, 1)  # type: ignore[arg-type]
    send(broker, peer, parcel)  # FakePeer checks that the descriptor is open
    broker.let_go(parcel, "queue")
    broker.released(peer, last_number(peer))  # type: ignore[arg-type]
    assert open_descriptors() == before
    assert len(broker) == 0


@pytest.mark.parametrize(
    ("body", "count"), [(b"short", 1), (reference(1, 10**6), 1), (reference(1)[:-2], 2), (pack_reference(7, []), 0)]
)
def test_references_to_nothing_are_refused_and_leave_nothing_open(body: bytes, count: int) -> None:
    broker, peer = Broker(), FakePeer()
    before = open_descriptors()
    with pytest.raises(InvalidError):
        broker.receive(peer, Flag.SEGMENT, body, [memory_file(b"x") for _ in range(count)])  # type: ignore[arg-type]
    broker.peer_gone(peer)  # type: ignore[arg-type]
    assert open_descriptors() == before


def test_a_descriptor_that_is_no_file_is_refused() -> None:
    broker, peer = Broker(), FakePeer()
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(InvalidError):
        broker.receive(peer, Flag.SEGMENT, reference(1), [reader])  # type: ignore[arg-type]
    with pytest.raises(OSError):
        os.fstat(reader)


def test_descriptors_beside_an_inline_payload_are_closed() -> None:
    before = open_descriptors()
    Broker().receive(FakePeer(), 0, b"body", [memory_file(b"x")])  # type: ignore[arg-type]
    assert open_descriptors() == before


class World:
    """Random peers that send, use, release, drop and vanish."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.broker = Broker()
        self.peers = [FakePeer() for _ in range(4)]
        self.owned: dict[FakePeer, set[int]] = {peer: set() for peer in self.peers}
        """Segments of each that are busy, as the owner sees it."""
        self.uses: Counter[tuple[FakePeer, int]] = Counter()
        self.queued: list[tuple[Parcel, Any]] = []
        self.token = 0

    def step(self) -> None:
        peer = self.rng.choice(self.peers)
        self.rng.choice([self.arrives, self.arrives, self.goes_on, self.goes_on, self.is_released, self.vanishes])(peer)

    def arrives(self, peer: FakePeer) -> None:
        known = set(self.broker._owned.get(peer, {}))  # type: ignore[call-overload]
        free = sorted(known - self.owned[peer])
        if free and self.rng.random() < 0.5:
            number, fresh = free[0], False
        else:
            number, fresh = max(known, default=0) + 1, True
        parcel = receive(self.broker, peer, number, fresh=fresh)
        self.owned[peer].add(number)
        self.token += 1
        self.broker.hold(parcel, self.token)
        self.queued.append((parcel, self.token))

    def goes_on(self, peer: FakePeer) -> None:
        if not self.queued:
            return
        parcel, token = self.queued.pop(self.rng.randrange(len(self.queued)))
        send(self.broker, peer, parcel)
        self.broker.let_go(parcel, token)
        self.note_releases()

    def is_released(self, peer: FakePeer) -> None:
        for number in list(peer.mapped):
            self.broker.released(peer, number)  # type: ignore[arg-type]
        self.note_releases()

    def vanishes(self, peer: FakePeer) -> None:
        if self.rng.random() < 0.7:
            return
        peer.close()
        self.broker.peer_gone(peer)  # type: ignore[arg-type]
        self.peers.remove(peer)
        self.peers.append(FakePeer())
        self.owned[self.peers[-1]] = set()
        self.note_releases()

    def note_releases(self) -> None:
        """Each release is for a segment that is busy: never a second one for the same use."""
        for peer in self.peers:
            for number in releases(peer):
                self.owned[peer].remove(number)
            peer.got = [frame for frame in peer.got if frame[0][0] != Kind.RELEASE]

    def end(self) -> None:
        for parcel, token in self.queued:
            self.broker.let_go(parcel, token)
        for peer in self.peers:
            self.is_released(peer)
        assert not any(self.owned[peer] for peer in self.peers)
        for peer in self.peers:
            peer.close()
            self.broker.peer_gone(peer)  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(5, 60))
def test_every_use_ends_in_one_release_and_nothing_stays_open(rng: random.Random, steps: int) -> None:
    before = open_descriptors()
    world = World(rng)
    for _ in range(steps):
        world.step()
    world.end()
    assert len(world.broker) == 0
    assert open_descriptors() == before


# Spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", Broker())


CALL = bytes(range(16))


def test_a_small_payload_needs_no_file(spool: Spool) -> None:
    journaled = spool.small(Parcel(b"body"))
    assert journaled is not None
    assert spool.open(journaled).body == b"body"


def test_a_large_payload_is_copied_and_found_again(spool: Spool, tmp_path: Path) -> None:
    parcel = receive(spool._broker, FakePeer())
    journaled = spool.write(CALL, parcel)
    before = open_descriptors()
    found = spool.open(journaled)
    assert found.segment is not None
    assert os.pread(found.segment.fd, 20, 0) == b"x" * 20
    spool._broker.hold(found, "reader")
    spool._broker.let_go(found, "reader")
    assert open_descriptors() == before
    spool.delete(CALL)
    assert list((tmp_path / "spool").iterdir()) == []
    with pytest.raises(NotFoundError):
        spool.open(journaled)


def test_a_payload_that_its_owner_cut_short_is_an_error_not_an_endless_loop(spool: Spool) -> None:
    parcel = receive(spool._broker, FakePeer())
    assert parcel.segment is not None
    os.ftruncate(parcel.segment.fd, 3)
    with pytest.raises(OSError, match="cut"):
        spool.write(CALL, parcel)


def test_what_a_dead_worker_wrote_by_half_is_removed(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / CALL.hex()).mkdir(exist_ok=True)
    (tmp_path / CALL.hex() / "abc.part").write_bytes(b"x")
    (tmp_path / CALL.hex() / "whole").write_bytes(b"x")
    again = Spool(tmp_path, Broker())
    assert [path.name for path in tmp_path.glob("*/*")] == ["whole"]
    assert again.holds(CALL)


def test_payloads_of_calls_that_are_no_more_are_collected_but_not_young_ones(spool: Spool, tmp_path: Path) -> None:
    spool.write(CALL, receive(spool._broker, FakePeer()))
    folder = tmp_path / "spool" / CALL.hex()
    (tmp_path / "spool" / "lost+found").mkdir()
    changed = folder.stat().st_mtime
    spool.collect(lambda _call: True, changed + 1)
    spool.collect(lambda _call: False, changed)
    assert folder.exists()
    spool.collect(lambda _call: False, changed + 1)
    assert not folder.exists()
