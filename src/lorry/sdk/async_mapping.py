"""`.map.aio`: the same map on an event loop. One task sends, the consumer receives."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from lorry import errors
from lorry.ids import call_name
from lorry.sdk.async_channel import AsyncChannel, drive
from lorry.sdk.channel import CallIds
from lorry.sdk.map_state import Chunk, MapState, Outcome
from lorry.sdk.mapping import HELD_BACK, Batch
from lorry.sdk.steps import Ask
from lorry.wire.control import raise_error
from lorry.wire.endpoint import Frame, Message
from lorry.wire.frames import Flag, Kind, pack, pack_selection

if TYPE_CHECKING:
    from lorry.sdk.function import Function

_ids = CallIds()


async def async_map(
    function: Function,
    iterables: tuple[Any, ...],
    kwargs: dict[str, Any],
    starred: bool,
    ordered: bool,
    return_exceptions: bool,
) -> AsyncIterator[Any]:
    """Iterables may be asynchronous or not; several are zipped."""
    starred = starred or len(iterables) > 1
    number = await drive(function._hydrated())
    run = AsyncMap(number, Batch(function, kwargs, starred), MapState(ordered=ordered, singly=function.is_resumable))
    inputs = _zip(iterables) if len(iterables) > 1 else _asynchronous(iterables[0])
    try:
        async for value in run.outputs(inputs):
            if type(value) is not Outcome:
                yield value
            elif return_exceptions:
                yield value.problem
            else:
                raise value.problem
    finally:
        await run.end()


async def _asynchronous(iterable: Any) -> AsyncIterator[Any]:
    if hasattr(iterable, "__aiter__"):
        async for item in iterable:
            yield item
        return
    for item in iterable:
        yield item


async def _zip(iterables: Iterable[Any]) -> AsyncIterator[tuple[Any, ...]]:
    sources = [_asynchronous(iterable) for iterable in iterables]
    while True:
        try:
            yield tuple([await anext(source) for source in sources])
        except StopAsyncIteration:
            return


class AsyncMap:
    def __init__(self, number: int, batch: Batch, state: MapState) -> None:
        self._number = number
        self._batch = batch
        self._state = state
        self._channel = AsyncChannel()
        self._call = _ids.next()
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._window = asyncio.Event()
        self._collected: list[Any] = []
        """Inputs for the next chunk."""
        self._problem: BaseException | None = None
        self._sender: asyncio.Task[None] | None = None

    async def outputs(self, inputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
        params = {"call": call_name(self._call), "number": self._number, "keep": False, "subscribe": True}
        self._channel._waiting["call", self._call] = self._frames
        await self._channel.perform(Ask("map_open", params))
        self._window.set()
        self._sender = asyncio.get_running_loop().create_task(self._send_inputs(inputs))
        while not self._state.done:
            for part in list(self._state.outputs()):
                for value in part:
                    yield value
                self._state.consumed += len(part)
                self._window.set()
            if not self._state.done:
                await self._receive()
        if self._problem is not None:
            raise self._problem

    async def _receive(self) -> None:
        """One frame, or the news that the sender is through."""
        frame = await self._next_frame()
        if frame is None:
            await self._reconnect()
        elif frame.kind == Kind.RESULT:
            covered = self._state.take(frame, self._channel.endpoint.pieces(frame))
            header = pack(Kind.RESULT_ACK, number=frame.number, call=frame.call)
            await self._quietly([Message([header, pack_selection(covered)], [])])
            with contextlib.suppress(ConnectionError):
                await self._channel.release_unused()
        elif frame.kind == Kind.CHUNK_ACK:
            if frame.status:
                raise_error(json.loads(frame.body))
            self._state.acknowledged(frame.number)

    async def _next_frame(self) -> Frame | None:
        while self._state.sent == self._state.finished and not self._state.exhausted:  # nothing is under way
            try:
                return await asyncio.wait_for(self._frames.get(), HELD_BACK)
            except TimeoutError:  # the inputs come slowly
                await self._send_collected()
        return await self._frames.get()

    async def _reconnect(self) -> None:
        if self._channel._sock is not None:  # only the sender's nudge
            return
        await self._channel.perform(Ask("map_attach", {"call": call_name(self._call)}))
        for chunk in self._state.unacknowledged():
            await self._send_chunk(chunk, Flag.AGAIN)
        if self._state.exhausted:
            await self._close()

    async def _quietly(self, messages: list[Message]) -> None:
        with contextlib.suppress(ConnectionError):
            await self._channel.send(messages)

    async def _send_chunk(self, chunk: Chunk, flags: int = 0) -> None:
        if chunk.payload is not None:
            await self._quietly(
                self._channel.endpoint.encode(
                    Kind.CHUNK, chunk.payload, flags=flags, number=chunk.start, call=self._call, count=chunk.count
                )
            )

    async def _close(self) -> None:
        await self._channel.perform(Ask("map_close", {"call": call_name(self._call)}))

    async def _send_inputs(self, inputs: AsyncIterator[Any]) -> None:
        try:
            while await self._send_next(inputs):
                while not self._state.may_send:
                    self._window.clear()
                    await self._window.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as problem:
            self._problem = problem
        self._state.exhausted = True
        try:
            await self._close()
        except errors.Error as problem:
            self._problem = self._problem or problem
        self._frames.put_nowait(None)

    async def _send_next(self, inputs: AsyncIterator[Any]) -> bool:
        more = True
        problem: Exception | None = None
        try:
            for _ in range(self._state.chunk_size):
                value = await anext(inputs)  # meanwhile the list may be sent and replaced
                self._collected.append(value)
        except StopAsyncIteration:
            more = False
        except Exception as raised:  # after the inputs before it
            problem = raised
        await self._send_collected()
        if problem is not None:
            raise problem
        return more

    async def _send_collected(self) -> None:
        part, self._collected = self._collected, []
        if part:
            await self._send_chunk(self._state.add(len(part), self._batch.payload(part)))

    async def end(self) -> None:
        """Normal end or abandoned."""
        if self._sender is not None:
            self._sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sender
        if not self._state.done:
            with contextlib.suppress(errors.Error):
                await drive(_cancel(self._call))
        self._channel.close()


def _cancel(call: bytes) -> Any:
    yield Ask("call_cancel", {"call": call_name(call)})
