"""One input at a time on the main thread: no threads, signals work, the shortest way from frame to result."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lorry import faults
from lorry.errors import InputCancellation, InvalidError, SerializationError, SliceTooShortError, YieldSlice
from lorry.model import selection as sel
from lorry.model.function import FunctionSpec
from lorry.model.records import Selection, Status
from lorry.runtime import output
from lorry.runtime import slice as slices
from lorry.runtime.failure import failure_payload
from lorry.runtime.link import Link, Payload
from lorry.runtime.load import Loaded, rebuild_arguments
from lorry.wire import pickling
from lorry.wire.endpoint import Frame, Message
from lorry.wire.frames import MAX_RANGES, NO_CALL, Flag, Kind, pack, pack_selection, unpack_selection

_OK = Status.OK
"""Looked up once: a member of an enum costs 0.05 µs each time."""
CREDIT_WINDOW = 64
"""Values of a generator that may be under way unread."""


class SyncRunner:
    def __init__(self, link: Link, loaded: Loaded, spec: FunctionSpec | None = None) -> None:
        self._link = link
        self._loaded = loaded
        self._lease = 0
        self._call = NO_CALL
        self._left: Selection = ()
        self._cursor: list[Any] = [0, 0, 0.0]
        """Chunk and index of the current input, and when it started; one list, so that the hot loop only stores."""
        output.current_input.set(self._cursor)
        self._interruptible = False
        self._interruption: Status | None = None
        self._missed = False
        """A nudge came when it could not be followed: the socket has not been looked at since."""
        self._stopping = False
        self._stream = False
        self._credit = 0
        self._resumable = spec if spec is not None and spec.resumable is not None else None
        self._slice: slices.Slice | None = None
        """Of the current input, if it is a run."""
        if self._resumable is not None:
            os.register_at_fork(after_in_child=self._end_slice)  # the run is its parent's

    def running(self) -> list[dict[str, Any]]:
        """What a new server must know: it is asked for while reconnecting."""
        if not self._lease:
            return []
        claim = {"lease": self._lease, "call": self._call.hex(), "chunk": self._cursor[0], "indices": self._left}
        return [{**claim, "stream": self._stream}]

    def serve(self) -> None:
        """Until the server says stop."""
        while not self._stopping:
            frame = self._link.receive()
            if frame.kind == Kind.INPUT:
                self._run(frame)
            else:
                self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.kind == Kind.REQUEST:
            message = self._link.control(frame)
            method = message.get("method") if message else None
            if method == "stop":
                self._stopping = True
            elif method == "yield" and self._slice is not None:
                self._interrupt(Status.CONTINUE, "drain")

    # While user code runs

    def nudged(self) -> None:
        """SIGUSR1: the server has something to say about the input that runs now."""
        if not self._interruptible:
            self._missed = True
            return
        self._look()
        if self._interruption is not None:
            self._interruptible = False
            raise InputCancellation("this input was cancelled, or ran past its timeout")

    def _look(self) -> None:
        self._missed = False
        while self._interruption is None and (frame := self._link.poll()) is not None:
            if frame.kind == Kind.CREDIT and frame.lease == self._lease:
                self._credit += frame.count
            elif frame.kind in (Kind.CANCEL, Kind.TIMEOUT):
                self._consider(frame)
            else:
                self._handle(frame)

    def _consider(self, frame: Frame) -> None:
        """Is it meant for the input that runs now, and is its time over by our clock?"""
        if frame.lease != self._lease:
            return
        if frame.kind == Kind.CANCEL:
            self._interrupt(Status.CANCELLED, "cancel")
            return
        elapsed = time.monotonic() - self._cursor[2]
        if elapsed >= frame.micros / 1e6:
            self._interrupt(Status.TIMEOUT, "slice")
        else:
            micros = min(int(elapsed * 1e6), 2**32 - 1)
            self._link.send_plain(Message([pack(Kind.TIMEOUT, lease=self._lease, micros=micros)], []))

    def _interrupt(self, status: Status, reason: str) -> None:
        """At once, with this outcome; or, if it is a run that keeps its state, at its next safe point. Also at that if
        the exception is lost: imports for instance run callbacks in which Python drops it."""
        if self._slice is not None:
            self._slice.ask(reason)
        if self._slice is None or not self._slice.active:
            self._interruption = status

    # Slices

    def _begin_slice(self, spec: FunctionSpec) -> None:
        assert spec.resumable is not None
        slices.current = self._slice = slices.Slice(spec.timeout, time.monotonic(), spec.resumable)

    def _end_slice(self) -> None:
        slices.current = self._slice = None

    def _yielded(self) -> tuple[Status, Payload] | None:
        """The outcome of a run that has ended at a safe point, whatever became of that in the user's code."""
        if self._slice is None or self._slice.yielded is None:
            return None
        reason = self._slice.yielded
        return Status.CANCELLED if reason == "cancel" else Status.CONTINUE, failure_payload(YieldSlice(reason))

    def _run(self, frame: Frame) -> None:
        self._lease, self._call = frame.lease, frame.call
        self._cursor[0] = frame.number
        self._left = unpack_selection(memoryview(frame.body))[0] if frame.flags & Flag.SELECT else ((0, frame.count),)
        self._interruption = None
        self._stream = bool(frame.flags & Flag.STREAM)
        if self._resumable is not None:
            self._begin_slice(self._resumable)
        output.current_call.set(frame.call)
        if faults.armed:
            faults.point("runner.input_received")
        if frame.flags & Flag.BATCH:
            self._run_batch(frame)
        elif frame.flags & Flag.STREAM:
            self._run_generator(frame)
        else:
            self._run_one(frame)
        self._lease = 0
        if self._slice is not None:
            self._end_slice()
        self._link.release_unused()

    def _run_one(self, frame: Frame) -> None:
        self._cursor[1] = 0
        self._cursor[2] = began = time.monotonic()
        try:
            # Two levels, because an interruption may come between the end of user code and the next line, inside the
            # handler too. It comes once: whoever raises it sets `_interruptible` to False.
            try:
                method, arguments, keywords = rebuild_arguments(self._link.endpoint.pieces(frame))
                function = self._loaded.method(method)
                if self._slice is not None:
                    function = self._slice.watched(function)
                self._interruptible = True
                if self._slice is not None and self._missed:  # before that; nobody else looks
                    self.nudged()
                value = function(*arguments, **keywords)
                self._interruptible = False
                payload: Payload = pickling.dumps(value)
                del value, arguments, keywords
                status = _OK
            except BaseException as problem:
                self._interruptible = False
                status, payload = self._failed(problem)
        except InputCancellation as late:
            status, payload = self._failed(late)
        if self._slice is not None:
            status, payload = self._yielded() or (status, payload)
        self._reply(status, payload, time.monotonic() - began, Flag.LAST)

    def _failed(self, problem: BaseException) -> tuple[Status, Payload]:
        """Status and payload for what user code raised; KeyboardInterrupt and SystemExit count as errors too."""
        if self._interruption is not None and isinstance(problem, InputCancellation):
            return self._interruption, failure_payload(problem)
        if self._slice is not None and isinstance(problem, YieldSlice):
            self._slice.yielded = self._slice.yielded or problem.reason
        elif self._slice is not None and isinstance(problem, SliceTooShortError):  # so would be every other attempt's
            text = json.dumps({"error": type(problem).__name__, "message": str(problem)})
            return Status.PLATFORM, (text.encode(), [])
        return Status.ERROR, failure_payload(problem)

    def _reply(
        self, status: Status, payload: Payload, seconds: float, flags: int, count: int = 1, selection: Selection = ()
    ) -> None:
        if self._link.forked:
            self._link.end_fork()
        if output.flush():
            flags |= Flag.OUTPUT
        if faults.armed:
            faults.point("runner.before_result")
        self._link.release_unused()
        if selection:
            flags |= Flag.SELECT
        micros = min(int(seconds * 1e6), 2**32 - 1)
        try:
            header = (Kind.RESULT, flags, status, 0, self._cursor[0], self._lease, self._call, micros, count)
            self._link.send(header, payload, pack_selection(selection) if selection else b"")
        except OSError as full:  # neither memory nor disk has room for the result
            problem = InvalidError(f"the result of {len(payload[0])} bytes and more cannot be sent: {full}")
            self._reply(Status.ERROR, failure_payload(problem), seconds, flags, count, selection)
        if faults.armed:
            faults.point("runner.after_result")

    # Batches: inputs of a map

    def _run_batch(self, frame: Frame) -> None:
        began = time.monotonic()
        self._cursor[1:] = [self._left[0][0], began]
        failures: dict[int, tuple[Status, Payload]] = {}
        values: list[Any] = []
        try:
            method, keywords, inputs, starred = rebuild_arguments(self._link.endpoint.pieces(frame))
            function = self._loaded.method(method)
            if self._slice is not None:
                function = self._slice.watched(function)
        except BaseException as problem:
            self._reply(Status.ERROR, failure_payload(problem), 0.0, Flag.LAST, frame.count)
            return
        for index in sel.indices(self._left):
            if self._missed:
                self._look()
            if self._stopping or self._interruption is Status.CANCELLED:
                break
            self._batch_from(index, function, keywords, inputs, starred, values, failures)
        self._reply_batch(values, failures, time.monotonic() - began)

    def _batch_from(
        self,
        index: int,
        function: Callable[..., Any],
        keywords: dict[str, Any],
        inputs: Sequence[Any],
        starred: bool,
        values: list[Any],
        failures: dict[int, tuple[Status, Payload]],
    ) -> None:
        cursor = self._cursor
        cursor[1] = index
        cursor[2] = time.monotonic()
        before = len(values)
        try:
            try:  # two levels: see `_run_one`
                self._interruptible = True
                if self._slice is not None and self._missed:
                    self.nudged()
                values.append(function(*inputs[index], **keywords) if starred else function(inputs[index], **keywords))
                self._interruptible = False
            except BaseException as problem:
                self._interruptible = False
                failures[index] = self._failed(problem)
        except InputCancellation as late:
            failures[index] = self._failed(late)
        if self._slice is not None and (yielded := self._yielded()):
            del values[before:]
            failures[index] = yielded
        if index not in failures:
            return
        if len(values) > before:  # it had finished when it was interrupted: the result counts
            del failures[index]
        if self._interruption is Status.TIMEOUT:
            # The rest of the batch goes on: its clock starts anew, and the kill that was to follow is called off.
            self._link.send_plain(Message([pack(Kind.TIMEOUT, lease=self._lease, micros=0)], []))
        if self._interruption is not Status.CANCELLED:  # a cancelled call has no use for the rest of its inputs
            self._interruption = None

    def _reply_batch(self, values: list[Any], failures: dict[int, tuple[Status, Payload]], seconds: float) -> None:
        done = sel.subtract(self._left, sel.from_indices(failures)) if failures else self._left
        if len(values) < sel.count(done):  # stopped on the way: the rest goes back unrun
            done = sel.from_indices(list(sel.indices(done))[: len(values)])
        share = seconds / max(1, len(values) + len(failures))
        partial = bool(failures) or done != self._left
        batches = list(_picklable(values, done, failures)) if values else []
        replies: list[tuple[Status, Payload, Selection]] = [(Status.OK, payload, part) for payload, part in batches]
        replies += [(status, payload, ((i, i + 1),)) for i, (status, payload) in sorted(failures.items())]
        if not replies:  # told to stop before the first input: give the lease back
            self._reply(Status.OK, pickling.dumps([]), 0.0, Flag.LAST | Flag.BATCH, 0)
            return
        partial |= len(replies) > 1
        for position, (status, payload, part) in enumerate(replies):
            last = Flag.LAST if position == len(replies) - 1 else 0
            batch = Flag.BATCH if status is Status.OK else 0
            count = sel.count(part)
            self._reply(status, payload, share * count, last | batch, count, part if partial else ())

    # Generators

    def _run_generator(self, frame: Frame) -> None:
        began = time.monotonic()
        self._cursor[1:] = [0, began]
        self._credit = CREDIT_WINDOW
        try:
            method, arguments, keywords = rebuild_arguments(self._link.endpoint.pieces(frame))
            try:  # two levels: see `_run_one`
                self._drain_generator(self._loaded.method(method)(*arguments, **keywords), began)
                status, payload = Status.DONE, pickling.dumps(None)
            except BaseException as problem:
                self._interruptible = False
                status, payload = self._failed(problem)
        except BaseException as problem:
            status, payload = self._failed(problem)
        self._reply(status, payload, time.monotonic() - began, Flag.LAST | Flag.STREAM)

    def _drain_generator(self, generator: Iterator[Any], began: float) -> None:
        while True:
            self._interruptible = True
            try:
                value = next(generator)
            except StopIteration:
                self._interruptible = False
                return
            self._interruptible = False
            self._reply(Status.YIELD, pickling.dumps(value), time.monotonic() - began, Flag.STREAM)
            self._credit -= 1
            while self._credit <= 0:
                self._await_credit(generator)

    def _await_credit(self, generator: Iterator[Any]) -> None:
        frame = self._link.receive()
        if frame.kind == Kind.CREDIT and frame.lease == self._lease:
            self._credit += frame.count
        elif frame.kind in (Kind.CANCEL, Kind.TIMEOUT):
            self._consider(frame)
        else:
            self._handle(frame)
        if self._interruption is not None:
            close = getattr(generator, "close", None)
            if close is not None:
                close()
            raise InputCancellation("nobody reads this generator any more, or its time is over")


def _picklable(
    values: list[Any], done: Selection, failures: dict[int, tuple[Status, Payload]]
) -> Iterator[tuple[Payload, Selection]]:
    """The values as one list; input by input only when that fails, so that one bad value costs only itself."""
    if len(done) > MAX_RANGES:  # every other input failed: its selection would not fit into a frame
        first, rest = done[:MAX_RANGES], done[MAX_RANGES:]
        yield from _picklable(values[: sel.count(first)], first, failures)
        yield from _picklable(values[sel.count(first) :], rest, failures)
        return
    try:
        yield pickling.dumps(values), done
        return
    except SerializationError:
        pass
    for index, value in zip(sel.indices(done), values, strict=False):
        try:
            yield pickling.dumps([value]), ((index, index + 1),)
        except SerializationError as problem:
            failures[index] = (Status.ERROR, failure_payload(problem))
