"""Several inputs at a time: async functions on one loop, sync ones in threads (`@concurrent`)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import ctypes
import functools
import inspect
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lorry.errors import InputCancellation
from lorry.model import selection as sel
from lorry.model.function import FunctionSpec
from lorry.model.records import Selection, Status
from lorry.runtime import output
from lorry.runtime.failure import failure_payload
from lorry.runtime.link import Link, Payload
from lorry.runtime.load import Loaded, is_async_callable, rebuild_arguments
from lorry.runtime.sync_runner import CREDIT_WINDOW
from lorry.wire import pickling
from lorry.wire.endpoint import Frame, Message
from lorry.wire.frames import Flag, Kind, pack, pack_selection, unpack_selection


def needed(spec: FunctionSpec, loaded: Loaded) -> bool:
    callables: list[Callable[..., Any]] = [*loaded.methods.values(), *loaded.enters, *loaded.exits]
    return spec.max_concurrent > 1 or any(is_async_callable(function) for function in callables)


@dataclass(slots=True, eq=False)
class Running:
    """One lease and the task that works on it."""

    frame: Frame
    left: Selection
    started: float
    place: list[int]
    """Chunk and index of its current input."""
    task: asyncio.Task[None] | None = None
    thread: int | None = None
    """Identifier of the thread that runs sync code for it."""
    interruption: Status | None = None
    credit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CREDIT_WINDOW))


class AsyncRunner:
    def __init__(self, link: Link, loaded: Loaded, spec: FunctionSpec) -> None:
        self._link = link
        self._loaded = loaded
        self._running: dict[int, Running] = {}
        self._stopping = asyncio.Event()
        self._threads_lock = threading.Lock()
        self._threads = concurrent.futures.ThreadPoolExecutor(spec.max_concurrent, "lorry-input")
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)

    def running(self) -> list[dict[str, Any]]:
        return [
            {
                "lease": lease,
                "call": job.frame.call.hex(),
                "chunk": job.frame.number,
                "indices": job.left,
                "stream": bool(job.frame.flags & Flag.STREAM),
            }
            for lease, job in self._running.items()
        ]

    def nudged(self) -> None:
        """The loop reads the socket by itself."""

    def serve(self) -> None:
        self.loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self.loop.add_reader(self._link.sock, self._readable)
        self._link.moved = self._moved
        self._handle_early()
        await self._stopping.wait()
        if self._running:
            await asyncio.wait([job.task for job in self._running.values() if job.task])

    def _moved(self, before: socket.socket) -> None:
        """The server came back on a new socket: found out while reading, or while sending a result."""
        self.loop.remove_reader(before)
        self.loop.add_reader(self._link.sock, self._readable)
        self.loop.call_soon(self._handle_early)

    def _handle_early(self) -> None:
        """Frames that came with the greeting are in no socket."""
        while self._link.waiting:
            self._readable()

    def _readable(self) -> None:
        frame = self._link.poll()
        if frame is None:
            return
        if frame.kind == Kind.INPUT:
            self._start(frame)
        elif frame.kind in (Kind.CANCEL, Kind.TIMEOUT, Kind.CREDIT):
            self._control_input(frame)
        elif frame.kind == Kind.REQUEST:
            message = self._link.control(frame)
            if message and message.get("method") == "stop":
                self._stopping.set()

    def _start(self, frame: Frame) -> None:
        left = unpack_selection(memoryview(frame.body))[0] if frame.flags & Flag.SELECT else ((0, frame.count),)
        job = Running(frame, left, time.monotonic(), [frame.number, 0])
        self._running[frame.lease] = job
        context = contextvars.copy_context()
        context.run(output.current_call.set, frame.call)
        context.run(output.current_lease.set, frame.lease)
        context.run(output.current_input.set, job.place)
        job.task = self.loop.create_task(self._work(job), context=context)

    def _control_input(self, frame: Frame) -> None:
        job = self._running.get(frame.lease)
        if job is None:
            return
        if frame.kind == Kind.CREDIT:
            for _ in range(frame.count):
                job.credit.release()
        elif frame.kind == Kind.CANCEL:
            self._interrupt(job, Status.CANCELLED)
        else:
            elapsed = time.monotonic() - job.started
            if elapsed >= frame.micros / 1e6:
                self._interrupt(job, Status.TIMEOUT)
            else:
                micros = min(int(elapsed * 1e6), 2**32 - 1)
                self._link.send_plain(Message([pack(Kind.TIMEOUT, lease=frame.lease, micros=micros)], []))

    def _interrupt(self, job: Running, why: Status) -> None:
        job.interruption = why
        with self._threads_lock:  # so that the thread cannot go on to another input meanwhile
            if job.thread is not None:
                # Takes effect at the thread's next bytecode; one that never reaches it is killed 5 s later.
                thread = ctypes.c_ulong(job.thread)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(InputCancellation))
                return
        if job.task is not None:
            job.task.cancel()

    async def _work(self, job: Running) -> None:
        try:
            if job.frame.flags & Flag.BATCH:
                await self._batch(job)
            elif job.frame.flags & Flag.STREAM:
                await self._generator(job)
            else:
                await self._one(job)
        finally:
            del self._running[job.frame.lease]
            self._link.release_unused()

    async def _one(self, job: Running) -> None:
        try:
            method, arguments, keywords = rebuild_arguments(self._link.endpoint.pieces(job.frame))
            payload = pickling.dumps(await self._call(job, method, arguments, keywords))
            del arguments, keywords
            status = Status.OK
        except BaseException as problem:
            status, payload = self._failed(job, problem)
        self._reply(job, status, payload, Flag.LAST)

    async def _batch(self, job: Running) -> None:
        try:
            method, keywords, inputs, starred = rebuild_arguments(self._link.endpoint.pieces(job.frame))
        except BaseException as problem:
            self._reply(job, Status.ERROR, failure_payload(problem), Flag.LAST)
            return
        indices = list(sel.indices(job.left))
        for index in indices:
            batch: int = Flag.BATCH
            job.place[1] = index
            job.started = time.monotonic()
            try:
                arguments = inputs[index] if starred else (inputs[index],)
                value = await self._call(job, method, arguments, keywords)
                status, payload = Status.OK, pickling.dumps([value])
            except BaseException as problem:
                status, payload = self._failed(job, problem)
                batch = 0
                if status is not Status.CANCELLED:
                    job.interruption = None
            cancelled = job.interruption is Status.CANCELLED  # then the call has no use for the rest
            last: int = Flag.LAST if index == indices[-1] or cancelled else 0
            self._reply(job, status, payload, last | batch, ((index, index + 1),))
            if cancelled:
                break

    async def _call(self, job: Running, method: str | None, arguments: Any, keywords: Any) -> Any:
        function = self._loaded.method(method)
        if inspect.iscoroutinefunction(function):
            return await function(*arguments, **keywords)
        return await self._in_thread(job, functools.partial(function, *arguments, **keywords))

    async def _in_thread(self, job: Running, call: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()

        def run() -> Any:
            job.thread = threading.get_ident()
            try:
                return context.run(call)
            except StopIteration as stop:  # cannot pass through a future: nobody would ever hear of it
                raise RuntimeError(f"the function raised StopIteration: {stop.value!r}") from stop
            finally:
                self._link.end_fork()
                with self._threads_lock:
                    job.thread = None

        return await self.loop.run_in_executor(self._threads, run)

    async def _generator(self, job: Running) -> None:
        try:
            method, arguments, keywords = rebuild_arguments(self._link.endpoint.pieces(job.frame))
            produced = self._loaded.method(method)(*arguments, **keywords)
            async for value in self._values(job, produced):
                await job.credit.acquire()
                self._reply(job, Status.YIELD, pickling.dumps(value), Flag.STREAM)
            status, payload = Status.DONE, pickling.dumps(None)
        except BaseException as problem:
            status, payload = self._failed(job, problem)
        self._reply(job, status, payload, Flag.LAST | Flag.STREAM)

    async def _values(self, job: Running, produced: Any) -> AsyncIterator[Any]:
        if hasattr(produced, "__aiter__"):
            async for value in produced:
                yield value
            return
        end = object()
        iterator: Iterator[Any] = iter(produced)
        while (value := await self._in_thread(job, functools.partial(next, iterator, end))) is not end:
            yield value

    def _failed(self, job: Running, problem: BaseException) -> tuple[Status, Payload]:
        if job.interruption is not None and isinstance(problem, (asyncio.CancelledError, InputCancellation)):
            return job.interruption, failure_payload(InputCancellation("the input was cancelled or timed out"))
        return Status.ERROR, failure_payload(problem)

    def _reply(self, job: Running, status: Status, payload: Payload, flags: int, selection: Selection = ()) -> None:
        self._link.end_fork()
        if output.flush():
            flags |= Flag.OUTPUT
        self._link.release_unused()
        if selection:
            flags |= Flag.SELECT
        frame, count = job.frame, max(1, sel.count(selection))
        micros = min(int((time.monotonic() - job.started) * 1e6), 2**32 - 1)
        header = (Kind.RESULT, flags, status, 0, frame.number, frame.lease, frame.call, micros, count)
        self._link.send(header, payload, pack_selection(selection) if selection else b"")
