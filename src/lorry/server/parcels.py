"""Payloads inside the server: opaque bodies, and shared segments that are passed from owner to receiver.

Segment numbers are local to each hop: an owner numbers its own, the server gives each a number of its own
for all receivers. The server keeps the descriptor, never a mapping. When nothing uses a payload any more
its owner gets RELEASE and writes the next one over it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorry.errors import InvalidError, NotFoundError
from lorry.server.peers import Peer, close_all
from lorry.wire.frames import HEADER, Flag, Kind, pack, renumber_reference, unpack_reference
from lorry.wire.segments import offsets


@dataclass(slots=True, eq=False)
class SharedSegment:
    number: int
    fd: int
    owner: Peer | None
    """None: a spooled file, or the owner is gone. It is closed with its last user."""
    owner_number: int
    users: set[Any] = field(default_factory=set)
    receivers: set[Peer] = field(default_factory=set)
    """Peers that have it mapped."""


@dataclass(slots=True, eq=False)
class Parcel:
    """One payload. `body` is the frame's body without selection; with a segment it is the reference."""

    body: bytes
    segment: SharedSegment | None = None

    def size(self) -> int:
        return len(self.body) if self.segment is None else sum(unpack_reference(self.body)[1])


class Broker:
    """All segments that pass through this server."""

    def __init__(self) -> None:
        self._next = 1
        self._owned: dict[Peer, dict[int, SharedSegment]] = {}
        self._by_number: dict[int, SharedSegment] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def receive(self, peer: Peer, flags: int, body: bytes, descriptors: Sequence[int]) -> Parcel:
        """The payload of a frame. Takes over the descriptors. InvalidError for a reference to nothing."""
        if not flags & Flag.SEGMENT:
            close_all(descriptors)
            return Parcel(body)
        try:
            owner_number, pieces = unpack_reference(body)
            _check_files(descriptors)
        except ValueError as malformed:
            close_all(descriptors)
            raise InvalidError(f"malformed payload reference: {malformed}") from None
        owned = self._owned.setdefault(peer, {})
        if descriptors:
            self._replace(peer, owner_number, descriptors)
        segment = owned.get(owner_number)
        if segment is None or offsets(pieces)[1] > os.fstat(segment.fd).st_size:
            raise InvalidError("a payload refers to a shared segment that was never sent, or is too short")
        return Parcel(body, segment)

    def _replace(self, peer: Peer, owner_number: int, descriptors: Sequence[int]) -> None:
        for extra in descriptors[1:]:
            os.close(extra)
        self.owner_dropped(peer, owner_number)
        segment = self._register(descriptors[0], peer, owner_number)
        self._owned[peer][owner_number] = segment

    def _register(self, fd: int, owner: Peer | None, owner_number: int) -> SharedSegment:
        segment = SharedSegment(self._next, fd, owner, owner_number)
        self._by_number[segment.number] = segment
        self._next += 1
        return segment

    def from_file(self, path: Path, reference: bytes) -> Parcel:
        """A spooled payload as a parcel; the file is mapped by its receiver and closed with its last user."""
        return self.from_descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC), reference)

    def from_descriptor(self, fd: int, reference: bytes) -> Parcel:
        """It takes over the descriptor. InvalidError for a reference that does not fit the file."""
        try:
            if offsets(unpack_reference(reference)[1])[1] > os.fstat(fd).st_size:
                raise ValueError("it is too short")
        except ValueError as malformed:
            os.close(fd)
            raise InvalidError(f"a kept payload is damaged: {malformed}") from None
        return Parcel(reference, self._register(fd, None, 0))

    def hold(self, parcel: Parcel, user: Any) -> None:
        if parcel.segment is not None:
            parcel.segment.users.add(user)

    def let_go(self, parcel: Parcel, user: Any) -> None:
        if parcel.segment is not None:
            self._discard(parcel.segment, user)

    def send(self, peer: Peer, header: Sequence[Any], parcel: Parcel, selection: bytes = b"") -> None:
        """Send a frame with this payload. `header`: the fields of HEADER; the SEGMENT flag is set here."""
        segment = parcel.segment
        if segment is None:
            peer.send(HEADER.pack(*header) + selection + parcel.body)
            return
        if peer.closed:
            return
        fields = list(header)
        fields[1] |= Flag.SEGMENT
        descriptors = () if peer in segment.receivers else (segment.fd,)
        segment.receivers.add(peer)
        segment.users.add(peer)
        peer.send(HEADER.pack(*fields) + selection + renumber_reference(parcel.body, segment.number), descriptors)

    def released(self, peer: Peer, number: int) -> None:
        """A receiver is done with it. From one that does not use it the word means nothing."""
        segment = self._by_number.get(number)
        if segment is not None and peer in segment.users:
            self._discard(segment, peer)

    def _discard(self, segment: SharedSegment, user: Any) -> None:
        """RELEASE goes out once per use: the owner may be writing its next payload when a second one came."""
        if user not in segment.users:
            return
        segment.users.remove(user)
        if segment.users:
            return
        if segment.owner is not None:
            segment.owner.send(pack(Kind.RELEASE, number=segment.owner_number))
        else:
            self._forget(segment)

    def owner_dropped(self, peer: Peer, owner_number: int) -> None:
        """The owner gave a segment up. One that is still in use (a faulty owner) stays until its last user is done:
        a descriptor closed under a queued payload would name another file by the time it is sent."""
        segment = self._owned.get(peer, {}).pop(owner_number, None)
        if segment is None:
            return
        segment.owner = None
        if not segment.users:
            self._forget(segment)

    def _forget(self, segment: SharedSegment) -> None:
        if self._by_number.pop(segment.number, None) is None:
            return
        for receiver in segment.receivers:
            receiver.send(pack(Kind.DROP, number=segment.number))
        os.close(segment.fd)

    def peer_gone(self, peer: Peer) -> None:
        """It neither uses nor owns anything any more; what others still use stays until they are done."""
        for segment in self._owned.pop(peer, {}).values():
            segment.owner = None
            if not segment.users - {peer}:
                self._forget(segment)
        for segment in [s for s in self._by_number.values() if peer in s.receivers]:
            segment.receivers.discard(peer)
            if peer in segment.users:
                self._discard(segment, peer)


class Spool:
    """Journaled payloads that are too large for a row: one file each, in a folder per call.

    A journaled payload is bytes: 0 and the inline body, or 1, the file's name, a zero byte and the reference.
    """

    def __init__(self, root: Path, broker: Broker) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._broker = broker
        for half_written in root.glob("*/*.part"):  # by a worker that died
            half_written.unlink()
        self._calls = set(os.listdir(root))
        """Folders that there are or were: nearly every call has none."""

    def holds(self, call: bytes) -> bool:
        """Whether it may have payloads here."""
        return call.hex() in self._calls

    def small(self, parcel: Parcel) -> bytes | None:
        """What to journal if no file is needed."""
        return b"\0" + parcel.body if parcel.segment is None else None

    def write(self, call: bytes, parcel: Parcel) -> bytes:
        """Copy a segment into a durable file; blocking, run it in a thread. OSError when the disk is full."""
        assert parcel.segment is not None
        folder = self._root / call.hex()
        folder.mkdir(exist_ok=True)
        self._calls.add(folder.name)
        name = uuid.uuid4().hex
        temporary = folder / f"{name}.part"
        size = offsets(unpack_reference(parcel.body)[1])[1]
        try:
            with temporary.open("wb") as target:
                done = 0
                while done < size:
                    copied = os.sendfile(target.fileno(), parcel.segment.fd, done, size - done)
                    if not copied:  # a segment that is not sealed can be cut short by its owner
                        raise OSError(errno.EIO, "the sender cut its payload short")
                    done += copied
                os.fsync(target.fileno())
            temporary.rename(folder / name)
            sync_folder(folder)
            sync_folder(self._root)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return b"\1" + f"{call.hex()}/{name}".encode() + b"\0" + parcel.body

    def open(self, journaled: bytes) -> Parcel:
        """The parcel of a journaled payload; hold it, so that letting go closes its file. NotFoundError when it
        was deleted."""
        if journaled[:1] == b"\0":
            return Parcel(journaled[1:])
        name, _, reference = journaled[1:].partition(b"\0")
        try:
            return self._broker.from_file(self._root / name.decode(), reference)
        except FileNotFoundError:
            raise NotFoundError(f"the payload {name.decode()} is not kept any more") from None

    def located(self, journaled: bytes) -> tuple[Path | None, bytes]:
        """The file of a journaled payload and the reference into it; or None and the payload itself."""
        if journaled[:1] == b"\0":
            return None, journaled[1:]
        name, _, reference = journaled[1:].partition(b"\0")
        return self._root / name.decode(), reference

    def remove(self, journaled: bytes) -> None:
        """Forget one payload. Its folder stays: the next one may be on its way into it."""
        if journaled[:1] == b"\1":
            (self._root / journaled[1:].partition(b"\0")[0].decode()).unlink(missing_ok=True)

    def delete(self, call: bytes) -> None:
        """Forget the files of a call. Open ones stay readable for who has them."""
        folder = self._root / call.hex()
        if folder.is_dir():
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # written to in this moment
                folder.rmdir()
                self._calls.discard(folder.name)

    def collect(self, known: Callable[[bytes], bool], older: float) -> None:
        """Delete the folders of calls that the store does not know any more, if they were last changed before
        `older` (Unix seconds): a payload is written before its row."""
        for folder in self._root.iterdir():
            try:
                call = bytes.fromhex(folder.name)
                if not known(call) and folder.stat().st_mtime < older:
                    self.delete(call)
            except (ValueError, OSError):  # not ours, or written to in this moment
                continue


def _check_files(descriptors: Sequence[int]) -> None:
    """Segments are files. A socket kept here could hold its own connection open for ever."""
    for descriptor in descriptors:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("a descriptor that is no file")


def sync_folder(folder: Path) -> None:
    """Make renames in it durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
