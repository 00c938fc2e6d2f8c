"""`.map` and its relatives: one thread sends inputs, the caller's thread receives outputs."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

from lorry import errors
from lorry.ids import call_name
from lorry.sdk import display
from lorry.sdk.call import FunctionCall
from lorry.sdk.channel import CallIds, Channel, drive
from lorry.sdk.map_state import Chunk, MapState, Outcome
from lorry.wire import pickling
from lorry.wire.control import encode, raise_error
from lorry.wire.endpoint import Frame, Message, receive_locked, send
from lorry.wire.frames import Flag, Kind, pack, pack_selection

if TYPE_CHECKING:
    from lorry.sdk.function import Function

Payload = tuple[bytes, list[memoryview]]
ids = CallIds()
HELD_BACK = 0.02
"""Seconds that collected inputs wait for more when nothing else is under way."""


class Batch:
    """Turns inputs of one map into payloads."""

    def __init__(self, function: Function, kwargs: dict[str, Any], starred: bool) -> None:
        self._head = (function._method, kwargs)
        self._starred = starred

    def payload(self, inputs: list[Any]) -> Payload:
        return pickling.dumps((*self._head, inputs, self._starred))


def zipped(iterables: tuple[Iterable[Any], ...], starred: bool) -> tuple[Iterator[Any], bool]:
    """One iterator of inputs, and whether each is a tuple of arguments."""
    if not iterables:
        raise TypeError("map needs at least one iterable of inputs")
    for iterable in iterables:
        if not hasattr(iterable, "__iter__"):
            raise TypeError(f"map goes over iterables; {type(iterable).__name__} is none (one call: .remote)")
    if starred or len(iterables) == 1:
        return iter(iterables[0]), starred
    return zip(*iterables, strict=False), True


def _known_length(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Of the shortest, if all have a length."""
    lengths = [len(each) for each in iterables if isinstance(each, Sized)]
    return min(lengths) if len(lengths) == len(iterables) else None


class Mapper:
    """What `f.map` is: call it, or its `.aio`."""

    def __init__(self, function: Function, starred: bool) -> None:
        self._function = function
        self._starred = starred

    def __call__(
        self,
        *iterables: Iterable[Any],
        kwargs: dict[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        inputs, starred = zipped(iterables, self._starred)
        refuse_generators(self._function)
        run = SyncMap(self._function, inputs, kwargs or {}, starred, order_outputs)
        run.expected = _known_length(iterables)
        return run.outputs(return_exceptions)

    def aio(
        self,
        *iterables: Any,
        kwargs: dict[str, Any] | None = None,
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:
        """The same for `async for`; iterables may be asynchronous too."""
        from lorry.sdk.async_mapping import async_map

        if not iterables:
            raise TypeError("map needs at least one iterable of inputs")
        refuse_generators(self._function)
        return async_map(self._function, iterables, kwargs or {}, self._starred, order_outputs, return_exceptions)


def refuse_generators(function: Function) -> None:
    if function.is_generator:
        raise errors.InvalidError(f"{function._tag} is a generator: it cannot be mapped; use .remote_gen(…) per input")


class SyncMap:
    """One running map. The sender thread owns the input iterator; both threads share `_lock`."""

    def __init__(
        self, function: Function, inputs: Iterator[Any], kwargs: dict[str, Any], starred: bool, ordered: bool
    ) -> None:
        self._number = drive(function._hydrated())
        self._inputs = inputs
        self._batch = Batch(function, kwargs, starred)
        self._state = MapState(ordered=ordered, singly=function.is_resumable)
        self._changed = threading.Condition()
        self._channel = Channel()
        self._call = ids.next()
        self._collected: list[Any] = []
        """Inputs for the next chunk."""
        self._connected = False
        self._over = False
        self._problem: BaseException | None = None
        """What the input iterator raised; raised at its place, after the outputs before it."""
        self._requests = itertools.count(1_000_000)
        self._progress = display.progress(function._tag)
        self.expected: int | None = None
        """How many inputs there will be, where their iterables tell; for the progress bar."""

    # The caller's thread

    def outputs(self, return_exceptions: bool) -> Iterator[Any]:
        """Results as they are due. Leaving early cancels the rest."""
        self._connect()
        sender = threading.Thread(target=self._send_inputs, name="lorry-map", daemon=True)
        sender.start()
        try:
            while not self._finished():
                for part in self._next_parts():
                    yield from self._unwrap(part, return_exceptions)
            if self._problem is not None:
                raise self._problem
        finally:
            self._end()
            sender.join(timeout=1.0)

    def _unwrap(self, part: list[Any], return_exceptions: bool) -> Iterator[Any]:
        if any(type(value) is Outcome for value in part):
            for value in part:
                if type(value) is not Outcome:
                    yield value
                elif return_exceptions:
                    yield value.problem
                else:
                    raise value.problem
        else:
            yield from part
        with self._changed:
            self._state.consumed += len(part)
            self._changed.notify_all()

    def _finished(self) -> bool:
        with self._changed:
            return self._state.done

    def _next_parts(self) -> list[list[Any]]:
        with self._changed:
            parts = list(self._state.outputs())
            idle = not parts and self._nothing_under_way
            if idle:  # wait for the sender, not for the server
                self._changed.wait(timeout=HELD_BACK)
            if idle and self._nothing_under_way:  # still: the inputs come slowly
                self._send_part(self._take_collected())
        if parts or idle:
            return parts
        self._receive()
        with self._changed:
            return list(self._state.outputs())

    @property
    def _nothing_under_way(self) -> bool:
        return self._state.sent == self._state.finished and not self._state.exhausted

    def _receive(self) -> None:
        """One frame; reconnects if the server was lost."""
        sock = self._channel.sock
        try:
            frame = receive_locked(sock, self._channel.endpoint, self._changed) if sock is not None else None
        except OSError:
            frame = None
        if frame is None:
            self._reconnect()
        elif frame.kind == Kind.RESULT and frame.call == self._call:
            self._result(frame)
        elif frame.kind == Kind.CHUNK_ACK and frame.call == self._call:
            self._acknowledged(frame)

    def _result(self, frame: Frame) -> None:
        pieces = self._channel.endpoint.pieces(frame)
        with self._changed:
            covered = self._state.take(frame, pieces)
            self._changed.notify_all()
        del pieces
        header = pack(Kind.RESULT_ACK, number=frame.number, call=frame.call)
        self._send_quietly([Message([header, pack_selection(covered)], [])])
        self._channel.release_unused()
        total = self._state.sent if self._state.exhausted else self.expected
        self._progress.update(self._state.finished, total)

    def _acknowledged(self, frame: Frame) -> None:
        if frame.status:
            import json

            with self._changed:
                self._over = True
                self._changed.notify_all()
            raise_error(json.loads(frame.body))
        with self._changed:
            self._state.acknowledged(frame.number)

    # Connection

    def _connect(self) -> None:
        params = {"call": call_name(self._call), "number": self._number, "keep": False, "subscribe": True}
        self._channel.ask("map_open", params)
        self._connected = True

    def _reconnect(self) -> None:
        with self._changed:
            self._connected = False
            self._channel.close()
            self._channel.open()
            self._channel.ask("map_attach", {"call": call_name(self._call)})
            self._connected = True
            for chunk in self._state.unacknowledged():
                self._send_chunk(chunk, Flag.AGAIN)
            if self._state.exhausted:
                self._send_close()
            self._changed.notify_all()

    def _send_quietly(self, messages: list[Message]) -> None:
        """The receiver notices a lost connection, and sends again what matters."""
        sock = self._channel.sock
        with contextlib.suppress(OSError):
            if sock is not None:
                send(sock, messages)

    def _send_chunk(self, chunk: Chunk, flags: int = 0) -> None:
        if chunk.payload is None:
            return
        messages = self._channel.endpoint.encode(
            Kind.CHUNK, chunk.payload, flags=flags, number=chunk.start, call=self._call, count=chunk.count
        )
        self._send_quietly(messages)

    def _send_close(self) -> None:
        body = {"method": "map_close", "params": {"call": call_name(self._call)}}
        self._send_quietly([Message([f], []) for f in encode(Kind.REQUEST, next(self._requests), body)])

    def _end(self) -> None:
        """Normal end or abandoned: nothing of this call stays on the server."""
        self._progress.close()
        with self._changed:
            self._over = True
            unfinished = not self._state.done
            self._changed.notify_all()
        if unfinished:
            with contextlib.suppress(errors.Error):
                FunctionCall(self._call).cancel()
        self._channel.close()

    # The sender's thread

    def _send_inputs(self) -> None:
        try:
            while self._wait_for_window():
                if not self._send_next():
                    break
        except BaseException as problem:
            with self._changed:
                self._problem = problem
        with self._changed:
            self._state.exhausted = True
            if self._connected and not self._over:
                self._send_close()
            self._changed.notify_all()

    def _wait_for_window(self) -> bool:
        with self._changed:
            while not self._over and not (self._connected and self._state.may_send):
                self._changed.wait()
            return not self._over

    def _send_next(self) -> bool:
        """One chunk; False at the end of the inputs. The iterator runs outside the lock: it may block."""
        before, wanted = self._state.sent, self._state.chunk_size
        collect = self._collected.append
        try:
            for value in itertools.islice(self._inputs, wanted):
                collect(value)
        except BaseException as problem:
            self._problem = problem
        with self._changed:
            part = self._take_collected()
            whole = self._state.sent - before + len(part) == wanted
        payload = self._batch.payload(part) if part else None
        with self._changed:
            self._send_part(part, payload)
            self._changed.notify_all()
        return whole and self._problem is None

    # Both threads, under the lock

    def _take_collected(self) -> list[Any]:
        """The list itself stays: the sender's thread may append to it at any moment."""
        part = self._collected[:]
        del self._collected[: len(part)]
        return part

    def _send_part(self, part: list[Any], payload: Payload | None = None) -> None:
        if part:
            self._send_chunk(self._state.add(len(part), payload or self._batch.payload(part)))


class ForEach:
    """`f.for_each`: run for the effects."""

    def __init__(self, function: Function) -> None:
        self._map = Mapper(function, starred=False)

    def __call__(
        self, *iterables: Iterable[Any], kwargs: dict[str, Any] | None = None, ignore_exceptions: bool = False
    ) -> None:
        for _ in self._map(*iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions):
            pass

    async def aio(self, *iterables: Any, kwargs: dict[str, Any] | None = None, ignore_exceptions: bool = False) -> None:
        async for _ in self._map.aio(
            *iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions
        ):
            pass


SPAWN_CHUNK = 256
"""Inputs per chunk of a `spawn_map`: nobody measures them for it, so chunks stay small enough to spread. Runs have a
chunk each."""
