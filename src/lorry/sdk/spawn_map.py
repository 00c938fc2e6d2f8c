"""`.spawn_map`: many inputs in the background, all on disk when it returns."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lorry.ids import call_name
from lorry.sdk.call import FunctionCall
from lorry.sdk.channel import Channel, drive
from lorry.sdk.mapping import SPAWN_CHUNK, Batch, Payload, ids, refuse_generators, zipped
from lorry.wire.control import raise_error
from lorry.wire.endpoint import receive, send
from lorry.wire.frames import Flag, Kind

if TYPE_CHECKING:
    from lorry.sdk.function import Function

WINDOW = 16
"""Chunks on their way to the disk at once: the journal commits together what has come together."""


class SpawnMap:
    """What `f.spawn_map` is: call it, or its `.aio`."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(self, *iterables: Iterable[Any], kwargs: dict[str, Any] | None = None) -> FunctionCall:
        inputs, starred = zipped(iterables, False)
        refuse_generators(self._function)
        number = drive(self._function._hydrated())
        size = 1 if self._function.is_resumable else SPAWN_CHUNK
        return Spawning(Channel(), Batch(self._function, kwargs or {}, starred)).spawn(number, inputs, size)

    async def aio(self, *iterables: Iterable[Any], kwargs: dict[str, Any] | None = None) -> FunctionCall:
        import asyncio

        return await asyncio.to_thread(self, *iterables, kwargs=kwargs)


class Spawning:
    """One `spawn_map`. Chunks are kept until they are acknowledged, and sent again when the server was lost."""

    def __init__(self, channel: Channel, batch: Batch) -> None:
        self._channel = channel
        self._batch = batch
        self._call = ids.next()
        self._unacknowledged: dict[int, tuple[int, Payload]] = {}
        """By the index of their first input: how many inputs, and they."""

    def spawn(self, number: int, inputs: Iterator[Any], size: int = SPAWN_CHUNK) -> FunctionCall:
        """`size`: inputs per chunk."""
        call = call_name(self._call)
        try:
            self._channel.ask("map_open", {"call": call, "number": number, "keep": True, "subscribe": False})
            start = 0
            while part := list(itertools.islice(inputs, size)):
                self._unacknowledged[start] = (len(part), self._batch.payload(part))
                self._send(start)
                start += len(part)
                self._wait_until_unacknowledged(WINDOW - 1)
            self._wait_until_unacknowledged(0)
            self._channel.ask("map_close", {"call": call})
        finally:
            self._channel.close()
        return FunctionCall(self._call)

    def _send(self, start: int, flags: int = 0) -> None:
        """Whoever waits for the acknowledgement notices a lost connection."""
        count, payload = self._unacknowledged[start]
        messages = self._channel.endpoint.encode(
            Kind.CHUNK, payload, flags=flags, number=start, call=self._call, count=count
        )
        with contextlib.suppress(OSError):
            if self._channel.sock is not None:
                send(self._channel.sock, messages)

    def _wait_until_unacknowledged(self, most: int) -> None:
        while len(self._unacknowledged) > most:
            sock = self._channel.sock
            frame = receive(sock, self._channel.endpoint) if sock is not None else None
            if frame is None:
                self._send_again()
            elif frame.kind == Kind.CHUNK_ACK and frame.call == self._call:
                if frame.status:
                    raise_error(json.loads(frame.body))
                self._unacknowledged.pop(frame.number, None)

    def _send_again(self) -> None:
        self._channel.close()
        self._channel.open()
        for start in self._unacknowledged:
            self._send(start, Flag.AGAIN)
