"""The asyncio connection: one per event loop, many requests at a time on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from lorry.sdk.channel import CallIds, greeting
from lorry.sdk.connecting import connect
from lorry.sdk.generator import Reader, lost_generator
from lorry.sdk.patience import Patience
from lorry.sdk.steps import Answer, Ask, Send, Steps
from lorry.timeouts import CONNECT_POLL
from lorry.wire.control import Assembler, encode, raise_error
from lorry.wire.endpoint import Endpoint, Frame, Message, receive
from lorry.wire.frames import Flag, Kind, pack

R = TypeVar("R")
_ANSWERS = frozenset((Kind.REPLY, Kind.EVENT, Kind.RESULT, Kind.CHUNK_ACK))
Key = tuple[str, int | bytes]


class AsyncChannel:
    """One connection of one loop. Every exchange waits in a queue of its own, by request number or call id."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._numbers = itertools.count(1)
        self._ids = CallIds()
        self._lock = asyncio.Lock()
        self._sock: socket.socket | None = None
        self._waiting: dict[Key, asyncio.Queue[Frame | None]] = {}
        self._drained: asyncio.Event | None = None
        """Set when the socket takes frames again; shared by all who wait for that."""
        self._guard: AsyncIterator[None] | None = None
        self.endpoint = Endpoint()

    @property
    def usable(self) -> bool:
        return self._pid == os.getpid() and not self._loop.is_closed()

    async def open(self) -> socket.socket:
        async with self._lock:
            if self._sock is None:
                sock = await _connected()
                sock.setblocking(False)
                self.endpoint.renew()
                self._sock = sock
                self._loop.add_reader(sock, self._readable, sock)
                try:
                    await self._ask_once("hello", greeting(), None)
                except BaseException:  # refused, or cancelled: a connection without a greeting is none
                    self.close()
                    raise
                await self._close_with_loop()
            return self._sock

    async def _close_with_loop(self) -> None:
        """`asyncio.run` closes the async generators that its loop has seen: ours closes the connection, which would
        otherwise stay open, and keep the server awake, as long as this process lives."""
        if self._guard is None:
            self._guard = self._until_the_loop_ends()
            await anext(self._guard)

    async def _until_the_loop_ends(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.close()
            if _per_loop.get(self._loop) is self:
                del _per_loop[self._loop]

    def close(self) -> None:
        """Whoever waits for an answer gets None: the connection is gone."""
        if self._sock is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._sock)
                self._wake_writers()
            self._sock.close()
            self._sock = None
        for queue in self._waiting.values():
            queue.put_nowait(None)

    def _readable(self, sock: socket.socket) -> None:
        try:
            frame = receive(sock, self.endpoint)
        except (BlockingIOError, InterruptedError):
            return
        if frame is None:
            self.close()
            return
        if frame.kind not in _ANSWERS:  # RELEASE and DROP name segments, not requests; the endpoint has seen to them
            return
        by_call = frame.kind in (Kind.RESULT, Kind.CHUNK_ACK)
        queue = self._waiting.get(("call", frame.call)) if by_call else None
        queue = queue or self._waiting.get(("request", frame.number))
        if queue is not None:
            queue.put_nowait(frame)
        else:  # of a call that was given up
            self.endpoint.skip(frame)

    async def send(self, messages: list[Message]) -> None:
        """ConnectionResetError when the connection is gone."""
        for buffers, ancillary in messages:
            while True:
                if self._sock is None:
                    raise ConnectionResetError
                try:
                    self._sock.sendmsg(buffers, ancillary)
                    break
                except (BlockingIOError, InterruptedError):
                    await self._writable()

    async def _writable(self) -> None:
        if self._sock is None:
            return
        if self._drained is None:
            self._drained = asyncio.Event()
            self._loop.add_writer(self._sock, self._wake_writers)
        await self._drained.wait()

    def _wake_writers(self) -> None:
        if self._drained is not None and self._sock is not None:
            self._loop.remove_writer(self._sock)
            self._drained.set()
            self._drained = None

    # Steps

    async def perform(self, step: Ask | Send) -> Any:
        """One step; tried again when the server is lost meanwhile (see Patience)."""
        call = step.call or self._ids.next() if isinstance(step, Send) else b""
        again = 0
        patience = Patience()
        while True:
            await self.open()
            patience.asks()
            try:
                if isinstance(step, Send):
                    return await self._exchange(step, call, again)
                return await self._ask_once(step.method, step.params, step.on_event)
            except ConnectionError:
                again = Flag.AGAIN
                patience.lost()
                await asyncio.sleep(CONNECT_POLL)

    async def _ask_once(self, method: str, params: dict[str, Any], on_event: Callable[[Any], None] | None) -> Any:
        number = next(self._numbers)
        key: Key = ("request", number)
        queue = self._waiting[key] = asyncio.Queue()
        assembler = Assembler()
        try:
            body = {"method": method, "params": params}
            await self.send([Message([frame], []) for frame in encode(Kind.REQUEST, number, body)])
            while True:
                frame = await queue.get()
                if frame is None:
                    raise ConnectionResetError
                if frame.kind == Kind.RESULT:
                    return Answer(frame, self.endpoint.pieces(frame))
                answer = assembler.feed(frame.kind, frame.flags, frame.number, frame.body)
                if frame.flags & Flag.MORE:
                    continue
                if frame.kind == Kind.EVENT:
                    if on_event is not None:
                        on_event(answer)
                    continue
                if frame.status:
                    raise_error(answer)
                return answer
        finally:
            del self._waiting[key]

    async def _exchange(self, step: Send, call: bytes, again: int) -> Answer:
        key: Key = ("call", call)
        queue = self._waiting[key] = asyncio.Queue()
        try:
            await self.send(
                self.endpoint.encode(
                    step.kind, step.payload, flags=step.flags | again, number=step.number, call=call, count=step.inputs
                )
            )
            frame = await queue.get()
            if frame is None:
                raise ConnectionResetError
            return Answer(frame, self.endpoint.pieces(frame))
        finally:
            del self._waiting[key]

    async def release_unused(self) -> None:
        released = [Message([pack(Kind.RELEASE, number=number)], []) for number in self.endpoint.maps.unused()]
        if released and self._sock is not None:
            with contextlib.suppress(ConnectionError):  # whoever asks next finds out, and connects again
                await self.send(released)

    async def stream(self, number: int, payload: Any) -> AsyncIterator[Any]:
        """Values of a generator."""
        call = self._ids.next()
        key: Key = ("call", call)
        await self.open()
        queue = self._waiting[key] = asyncio.Queue()
        reader = Reader()
        try:
            await self.send(self.endpoint.encode(Kind.CALL, payload, number=number, call=call, flags=Flag.STREAM))
            while not reader.ended:
                frame = await queue.get()
                if frame is None:
                    raise lost_generator()
                for value in reader.take(frame, self.endpoint.pieces(frame)):
                    yield value
                await self.send(reader.credit(call))
                await self.release_unused()
        finally:
            del self._waiting[key]


async def _connected() -> socket.socket:
    """Connecting may start a server and take seconds: in a thread. One that nobody waits for any more is closed."""
    connecting = asyncio.ensure_future(asyncio.to_thread(connect))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        connecting.add_done_callback(_close_connected)
        raise


def _close_connected(connecting: asyncio.Future[socket.socket]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


_per_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncChannel] = weakref.WeakKeyDictionary()


def current() -> AsyncChannel:
    """The running loop's connection."""
    loop = asyncio.get_running_loop()
    channel = _per_loop.get(loop)
    for ended in [other for other in _per_loop if other.is_closed()]:  # of a loop that was closed by hand
        _per_loop.pop(ended).close()
    if channel is None or not channel.usable:
        channel = _per_loop[loop] = AsyncChannel()
    return channel


async def drive(steps: Steps[R]) -> R:
    """Run steps on this loop's connection."""
    channel = current()
    await channel.release_unused()
    try:
        step = next(steps)
        while True:
            try:
                value = await channel.perform(step)
            except Exception as problem:
                step = steps.throw(problem)
            else:
                step = steps.send(value)
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]


async def iterate(number: int, payload: Any) -> AsyncIterator[Any]:
    """On a connection of its own, so that leaving early tells the server."""
    channel = AsyncChannel()
    try:
        async for value in channel.stream(number, payload):
            yield value
    finally:
        channel.close()
