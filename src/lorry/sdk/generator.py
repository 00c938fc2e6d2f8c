"""`.remote_gen`: values of a remote generator as they are produced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from lorry import errors
from lorry.model.records import Status
from lorry.sdk import channel as blocking
from lorry.sdk.results import exception_of, load
from lorry.wire import pickling
from lorry.wire.endpoint import Frame, Message, receive, send
from lorry.wire.frames import Flag, Kind, pack

if TYPE_CHECKING:
    from lorry.sdk.function import Function

CREDIT_BATCH = 16
"""Values read before the producer is told that it may go on; its window is 64 (runtime.sync_runner)."""


class RemoteGenerator:
    """What `f.remote_gen` is: call it, or its `.aio`."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        number = blocking.drive(self._function._hydrated())
        self._check()
        return _iterate(number, pickling.dumps((self._function._method, args, kwargs)))

    async def aio(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        from lorry.sdk import async_channel

        number = await async_channel.drive(self._function._hydrated())
        self._check()
        payload = pickling.dumps((self._function._method, args, kwargs))
        async for value in async_channel.iterate(number, payload):
            yield value

    def _check(self) -> None:
        if not self._function.is_generator:
            raise errors.InvalidError(f"{self._function._tag} is not a generator: use .remote(…)")


class Reader:
    """The consumer's side without I/O: counts credit, knows the end."""

    def __init__(self) -> None:
        self.ended = False
        self._unpaid = 0

    def take(self, frame: Frame, pieces: list[Any]) -> list[Any]:
        """The value in the frame, if any; raises what the generator raised."""
        if frame.status == Status.YIELD:
            self._unpaid += 1
            return [load(pieces)]
        self.ended = True
        if frame.status != Status.DONE:
            raise exception_of(frame.status, bytes(pieces[0]))
        return []

    def credit(self, call: bytes) -> list[Message]:
        """What to send so that the producer goes on."""
        if self._unpaid < CREDIT_BATCH:
            return []
        count, self._unpaid = self._unpaid, 0
        return [Message([pack(Kind.CREDIT, call=call, count=count)], [])]


def _iterate(number: int, payload: tuple[bytes, list[memoryview]]) -> Iterator[Any]:
    """On a connection of its own: closing it is what tells the server that nobody reads any more."""
    channel = blocking.Channel()
    call = blocking.CallIds().next()
    reader = Reader()
    try:
        sock = channel.open()
        send(sock, channel.endpoint.encode(Kind.CALL, payload, number=number, call=call, flags=Flag.STREAM))
        while not reader.ended:
            frame = receive(sock, channel.endpoint)
            if frame is None:
                raise lost_generator()
            if frame.kind == Kind.RESULT and frame.call == call:
                yield from reader.take(frame, channel.endpoint.pieces(frame))
                send(sock, reader.credit(call))
                channel.release_unused()
    finally:
        channel.close()


def lost_generator() -> errors.Error:
    return errors.ConnectionError(
        "the server was lost while a generator was read. Its values so far were delivered; it is not started again"
    )
