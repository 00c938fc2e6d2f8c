"""What arrives on connections: hot frames go straight to the switch, requests to the methods of the API.

A connection is nobody until its `hello`. On the inner socket, which containers reach, hello needs a container's
id and token, and gives either the container's own link or a client's with the rights of that container.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorry import __version__, errors
from lorry.model.records import CallRecord
from lorry.scheduler.dispatch import Work
from lorry.server.container import Container
from lorry.server.fleet import Fleet
from lorry.server.journal import Journal
from lorry.server.logs import LogStore
from lorry.server.parameters import checked
from lorry.server.parcels import Broker, Parcel
from lorry.server.peers import Peer, close_all
from lorry.server.switch import Switch
from lorry.server.templates import Template, Templates
from lorry.timeouts import UNCLAIMED
from lorry.wire.control import MAX_MESSAGE
from lorry.wire.frames import MAX_FRAME, PROTOCOL_VERSION, Flag, Header, Kind, pack, unpack_selection

MAX_HELLO = 4 * MAX_FRAME
"""Bytes that a connection may send before it is somebody."""
MAX_INNER = 4 << 20
"""Bytes of a control message of code in a container: it uploads nothing."""
MAX_STRANGERS = 256
"""Connections of the inner socket that have not said who they are; with one more, the oldest is closed. A program says
hello at once, and connects anew when it is cut off."""
MAX_CONNECTIONS = 1024
"""Of the code in one container: one per thread that calls functions, and one per map."""
_PAYLOADS = frozenset((Kind.CALL, Kind.CHUNK, Kind.SPAWN, Kind.RESULT))
"""Frames that may carry descriptors; from others they are closed at once."""


@dataclass(slots=True, eq=False)
class Session:
    """A client's connection. `container`: it is the code inside a container that asks."""

    peer: Peer
    pid: int
    container: Container | None = None


_Accept = Callable[[Session, Header, Parcel], Awaitable[Work | None]]
Method = Callable[[Session, dict[str, Any], int], Awaitable[Any]]
"""A method of the API: session, parameters, request number → reply. NO_REPLY if it has answered itself."""
NO_REPLY = object()


class Frontend:
    def __init__(
        self,
        switch: Switch,
        journal: Journal,
        broker: Broker,
        fleet: Fleet,
        templates: Templates,
        logs: LogStore,
        methods: Mapping[str, Method],
        inner_methods: frozenset[str],
    ) -> None:
        self._switch = switch
        self._journal = journal
        self._broker = broker
        self._fleet = fleet
        self._templates = templates
        self._logs = logs
        self._methods = methods
        self._inner_methods = inner_methods
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: set[Peer] = set()
        self._strangers: dict[Peer, None] = {}
        """Of the inner socket, the oldest first."""
        self._connections: Counter[Container] = Counter()
        """Of clients inside each container."""
        self.on_gone: Callable[[Session], None] = lambda _session: None
        """A client's connection ended."""

    def connected(self, sock: socket.socket, inner: bool) -> None:
        peer = Peer(sock, self._loop, self._inner_stranger if inner else self._stranger, self._closed)
        peer.assembler.limit = MAX_HELLO
        self.peers.add(peer)
        if inner:
            self._strangers[peer] = None
            if len(self._strangers) > MAX_STRANGERS:
                next(iter(self._strangers)).close()

    def clients(self) -> int:
        """Connections of clients outside containers."""
        return sum(isinstance(p.identity, Session) and p.identity.container is None for p in self.peers)

    def _closed(self, peer: Peer) -> None:
        self.peers.discard(peer)
        self._strangers.pop(peer, None)
        identity = peer.identity
        self._broker.peer_gone(peer)
        if isinstance(identity, Container):
            self._fleet.disconnected(identity, peer)
        elif isinstance(identity, Template):
            self._templates.gone(identity, peer)
        elif isinstance(identity, Session):
            self._switch.client_gone(peer)
            self._journal.unsubscribe(peer)
            self._logs.unfollow(peer)
            self.on_gone(identity)
            if identity.container is not None:
                self._count(identity.container, -1)
            for call in [call for call, opener in self._switch.openers.items() if opener is peer]:
                self._loop.call_later(UNCLAIMED, self._abandoned, call, peer)

    def abandon_later(self, call: bytes) -> None:
        """A map of an earlier life of the server: its client comes back, or nobody finishes it."""
        self._loop.call_later(UNCLAIMED, self._abandoned, call, None)

    def _abandoned(self, call: bytes, peer: Peer | None) -> None:
        """The client of an unfinished map went away, and did not come back on another connection."""
        record = self._switch.open_calls.get(call)
        if record is None or self._switch.openers.get(call) is not peer:
            return
        self._switch.open_calls.pop(call)
        self._switch.openers.pop(call, None)
        self._run(_quietly(self._give_up(record)))

    async def _give_up(self, record: CallRecord) -> None:
        if record.keep_results:  # half a `spawn_map`: what was acknowledged runs
            await self._journal.close_call(record.call)
            return
        await self._journal.cancel(record.call)
        self._switch.cancel(record.call, record.function, "its client went away")

    # Hello

    def _stranger(self, peer: Peer, header: Header, body: bytes, descriptors: Sequence[int]) -> None:
        self._greet(peer, header, body, descriptors, inner=False)

    def _inner_stranger(self, peer: Peer, header: Header, body: bytes, descriptors: Sequence[int]) -> None:
        self._greet(peer, header, body, descriptors, inner=True)

    def _greet(self, peer: Peer, header: Header, body: bytes, descriptors: Sequence[int], inner: bool) -> None:
        close_all(descriptors)
        try:
            message = peer.assembler.feed(header[0], header[1], header[4], body)
            if message is None:
                return
            parameters = message["params"]
            if header[0] != Kind.REQUEST or message["method"] != "hello" or not isinstance(parameters, dict):
                raise ValueError("not a hello")
            answer = self._hello(peer, parameters, inner)
        except errors.Error as refused:
            peer.reply_error(header[4], refused)
            return
        except (ValueError, TypeError, KeyError):
            peer.close()
            return
        peer.reply(header[4], answer)

    def _hello(self, peer: Peer, parameters: dict[str, Any], inner: bool) -> dict[str, Any]:
        if parameters.get("protocol") != PROTOCOL_VERSION:
            raise errors.VersionError(
                f"this server speaks protocol {PROTOCOL_VERSION} (lorry {__version__}), the client "
                f"{parameters.get('protocol')}. Run `lorry server restart` with the newer lorry"
            )
        greeting: dict[str, Any] = {"version": __version__, "pid": os.getpid(), "protocol": PROTOCOL_VERSION}
        if not inner:
            peer.become(Session(peer, peer.pid), self._from_client, MAX_MESSAGE)
        elif parameters.get("role") == "container":
            greeting |= self._fleet.hello(peer, parameters)
            peer.become(self._fleet.identify(parameters), self._from_container, MAX_INNER)
        elif parameters.get("role") == "template":
            greeting |= self._templates.hello(peer, parameters)
            peer.become(self._templates.identify(parameters), self._templates.frame, MAX_INNER)
        else:
            container = self._fleet.identify(parameters)
            if container.spec.restrict_access:
                raise errors.InvalidError("this function was declared with restrict_access=True: it may call nothing")
            if self._connections[container] >= MAX_CONNECTIONS:
                raise errors.ResourceError(
                    f"this container has {MAX_CONNECTIONS:,} connections to the server, and may not have more: each "
                    "thread that calls functions has one"
                )
            self._count(container, 1)
            peer.become(Session(peer, peer.pid, container), self._from_client, MAX_INNER)
            greeting["app_id"] = container.app_id
        self._strangers.pop(peer, None)
        return greeting

    def _count(self, container: Container, change: int) -> None:
        self._connections[container] += change
        if not self._connections[container]:
            del self._connections[container]

    # Frames of clients

    def _from_client(self, peer: Peer, header: Header, body: bytes, descriptors: Sequence[int]) -> None:
        kind = header[0]
        if descriptors and kind not in _PAYLOADS:
            close_all(descriptors)
        try:
            if kind == Kind.CALL:
                self._switch.call(peer, header, body, descriptors)
            elif kind == Kind.REQUEST:
                self._request(peer, header, body)
            elif kind in (Kind.CHUNK, Kind.SPAWN):
                parcel = self._broker.receive(peer, header[1], body, descriptors)
                accept = self._accept_chunk if kind == Kind.CHUNK else self._accept_spawn
                task = self._run(self._accept(peer, header, parcel, accept))
                if kind == Kind.CHUNK:
                    self._note_arrival(header[6], task)
            elif kind == Kind.RESULT_ACK:
                selection, _ = unpack_selection(memoryview(body))
                self._run(_quietly(self._journal.acknowledge(header[6], header[4], selection)))
            elif kind == Kind.CREDIT:
                self._switch.credit(header)
            elif kind == Kind.RELEASE:
                self._broker.released(peer, header[4])
            elif kind == Kind.DROP:
                self._broker.owner_dropped(peer, header[4])
            else:
                peer.close()
        except (ValueError, errors.InvalidError):
            peer.close()  # malformed: there is nobody to explain it to

    async def _accept(self, peer: Peer, header: Header, parcel: Parcel, accept: _Accept) -> None:
        """Journal, acknowledge, run: in this order."""
        chunk, call = header[4] if header[0] == Kind.CHUNK else 0, header[6]
        self._broker.hold(parcel, header)
        try:
            work = await accept(peer.identity, header, parcel)
        except Exception as refused:
            name = type(refused).__name__ if isinstance(refused, errors.Error) else "InternalError"
            body = json.dumps({"error": name, "message": str(refused)}).encode()
            peer.send(pack(Kind.CHUNK_ACK, status=1, number=chunk, call=call) + body)
            return
        finally:
            self._broker.let_go(parcel, header)
        peer.send(pack(Kind.CHUNK_ACK, number=chunk, call=call))
        if work is not None and not self._switch.takes(work):
            with contextlib.suppress(errors.ResourceError):
                await self._journal.cancel(call)
        elif work is not None:
            keep = parcel.segment is None and self._switch.queue_is_short(work.target)
            self._switch.submit(work, parcel if keep else None)

    def _note_arrival(self, call: bytes, task: asyncio.Task[None]) -> None:
        arriving = self._switch.arriving
        arriving.setdefault(call, set()).add(task)

        def arrived(done: asyncio.Task[None]) -> None:
            arriving[call].discard(done)
            if not arriving[call]:
                del arriving[call]

        task.add_done_callback(arrived)

    async def _accept_chunk(self, session: Session, header: Header, parcel: Parcel) -> Work | None:
        _, flags, _, _, chunk, _, call, _, count = header
        record = self._switch.open_calls.get(call)
        if record is None:
            raise errors.NotFoundError("this map is closed, cancelled or unknown")
        if count > 1 and self._switch.spec(record.function).resumable is not None:
            raise errors.InvalidError(f"{count} inputs in one chunk, but each input of a resumable function is a run")
        self._switch.openers[call] = session.peer
        if not await self._journal.accept_chunk(call, chunk, count, parcel):
            return None
        return Work(
            call=call,
            chunk=chunk,
            target=record.function,
            indices=((0, count),),
            count=count,
            total=count,
            journaled=True,
            batch=True,
            again=bool(flags & Flag.AGAIN),
        )

    async def _accept_spawn(self, session: Session, header: Header, parcel: Parcel) -> Work | None:
        _, flags, _, _, target, _, call, _, _ = header
        record = self._switch.new_call(target, call, session.container.current_call if session.container else None)
        if not await self._journal.accept_spawn(record, parcel):
            return None
        return Work(call=call, target=target, journaled=True, again=bool(flags & Flag.AGAIN))

    def _request(self, peer: Peer, header: Header, body: bytes) -> None:
        message = peer.assembler.feed(Kind.REQUEST, header[1], header[4], body)
        if message is not None:
            self._run(self._answer(peer, header[4], message))

    async def _answer(self, peer: Peer, number: int, message: Any) -> None:
        try:
            name = message.get("method") if isinstance(message, dict) else None
            session: Session = peer.identity
            method = self._methods.get(name) if isinstance(name, str) else None
            if name is None or method is None:
                raise errors.InvalidError(f"this server has no method {name!r}; is the client newer?")
            if session.container is not None and name not in self._inner_methods:
                raise errors.InvalidError(f"code in a container may not ask for {name!r}")
            reply = await method(session, checked(name, message.get("params", {})), number)
            if reply is not NO_REPLY:
                peer.reply(number, reply)
        except Exception as problem:
            peer.reply_error(number, problem)

    # Frames of containers

    def _from_container(self, peer: Peer, header: Header, body: bytes, descriptors: Sequence[int]) -> None:
        kind = header[0]
        container: Container = peer.identity
        if descriptors and kind not in _PAYLOADS:
            close_all(descriptors)
        try:
            if kind == Kind.RESULT:
                if header[1] & Flag.OUTPUT and container.pump is not None:
                    container.pump.drain()
                self._switch.result(container.container_id, peer, header, body, descriptors)
                if container.ready_at is not None:
                    self._fleet.first_result(container)
            elif kind == Kind.REQUEST:
                self._container_request(peer, container, header, body)
            elif kind == Kind.RELEASE:
                self._broker.released(peer, header[4])
            elif kind == Kind.DROP:
                self._broker.owner_dropped(peer, header[4])
            elif kind == Kind.TIMEOUT:
                self._switch.progress(container.container_id, header[5], header[7] / 1e6)
            else:
                peer.close()
        except (ValueError, TypeError, KeyError, AttributeError, errors.InvalidError):
            self._fleet.kill(container.container_id, "it sent a malformed frame", guilty=True)
            peer.close()

    def _container_request(self, peer: Peer, container: Container, header: Header, body: bytes) -> None:
        message = peer.assembler.feed(Kind.REQUEST, header[1], header[4], body)
        if message is None:
            return
        peer.reply(header[4], {})
        if message.get("method") == "ready":
            self._fleet.ready(container, message.get("params"))
        elif message.get("method") == "boot_failed":
            if container.pump is not None:
                container.pump.drain()
            self._fleet.boot_failed(container, str(message["params"]["failure"]))

    def _run(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _quietly(write: Awaitable[Any]) -> None:
    """An acknowledgement that is lost only keeps a result a little longer."""
    with contextlib.suppress(errors.Error):
        await write
