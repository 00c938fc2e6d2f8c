"""The blocking connection: one per thread, made at first use, made anew after a fork or a lost server."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lorry import __version__, errors
from lorry.sdk import display, start_server
from lorry.sdk.connecting import connect, silent_server
from lorry.sdk.patience import Patience
from lorry.sdk.steps import Answer, Ask, Send, Steps
from lorry.timeouts import SERVER_START
from lorry.wire import identity
from lorry.wire.control import Assembler, encode, raise_error
from lorry.wire.endpoint import Endpoint, Frame, Message, receive, send
from lorry.wire.frames import PROTOCOL_VERSION, Flag, Kind, pack
from lorry.wire.lookout import Lookout

R = TypeVar("R")


def greeting() -> dict[str, Any]:
    """Parameters of this process's hello."""
    me: dict[str, Any] = {"protocol": PROTOCOL_VERSION, "version": __version__, "role": "client"}
    if identity.container is not None:
        me |= {"container_id": identity.container.container_id, "token": identity.container.token}
    return me


_forks = 0
"""How often this process is a forked child. Cheaper to compare than os.getpid() is to call."""


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


_waiting: list[object] = []
"""One item per thread that waits for an answer. Only a lone one stays awake: others need the interpreter's lock."""


class CallIds:
    """Client-made ids: 8 random bytes of this connection, then a counter. No system call per call."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8)
        self._numbers = itertools.count(1)

    def next(self) -> bytes:
        return self._prefix + next(self._numbers).to_bytes(8, "big")


_said: set[str] = set()


def _say_once(sentence: str) -> None:
    """Each thread has a connection; the user needs one line."""
    if sentence not in _said:
        _said.add(sentence)
        print(sentence, file=sys.stderr, flush=True)


def _parts(version: str) -> tuple[int, ...]:
    """`0.10.2` as numbers, for comparison; what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def readable(sock: socket.socket, seconds: float | None) -> bool:
    """Whether something has come within so many seconds (None: wait for it). False for a closed socket."""
    poll = select.poll()
    try:
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))
    except (OSError, ValueError):
        return False


class Channel:
    """One blocking connection."""

    def __init__(self, *, may_start: bool = True) -> None:
        self._forks = _forks
        self._may_start = may_start
        self._numbers = itertools.count(1)
        self._ids = CallIds()
        self.endpoint = Endpoint()
        self._lookout = Lookout()
        self._assembler = Assembler()
        self.sock: socket.socket | None = None
        self.busy = False
        self.server: dict[str, Any] = {}

    @property
    def usable(self) -> bool:
        """False in a forked child: the parent's connection is the parent's."""
        return self._forks == _forks

    def open(self) -> socket.socket:
        """The connection, made if there is none. The server's answer to hello stays in `server`."""
        if self.sock is None:
            deadline = time.monotonic() + SERVER_START
            while True:
                self.sock = connect(may_start=self._may_start)
                self.endpoint.renew()
                self._assembler = Assembler()
                self.sock.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    self.server = self._ask_once("hello", greeting(), None)
                    if self._replaces(self.server["version"]):
                        continue
                    self.sock.settimeout(None)
                    return self.sock
                except (ConnectionError, TimeoutError):  # the worker died before its answer, or keeps dying
                    self.close()
                    if time.monotonic() > deadline or start_server.has_failed():
                        raise silent_server() from None
                except BaseException:  # refused, or Ctrl-C: a connection without a greeting is none
                    self.close()
                    raise
        return self.sock

    def _replaces(self, theirs: str) -> bool:
        """An idle server of an older version makes way for ours; a busy one serves us as long as it speaks our
        protocol, and we say so. True if it has ended."""
        if identity.container is not None or not self._may_start or _parts(theirs) >= _parts(__version__):
            return False
        try:
            ended = self._ask_once("server_stop", {}, None)
        except errors.Error as busy:
            _say_once(f"note: the server is still lorry {theirs}, not {__version__}: {busy} (`lorry server restart`)")
            return False
        self.close()
        for process in ("worker", "keeper"):  # the worker may have lost its keeper
            with contextlib.suppress(ProcessLookupError, KeyError):
                handle = os.pidfd_open(ended[process])
                try:
                    select.select([handle], [], [], SERVER_START)
                finally:
                    os.close(handle)
        return True

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def __del__(self) -> None:
        """A thread ended, and its connection with it."""
        if self.usable:
            self.close()

    def abandon(self) -> None:
        """In a forked child: drop the socket object without a word to the server."""
        if self.sock is not None:
            os.close(self.sock.detach())
            self.sock = None
        self.endpoint.pool.close()  # this process's copies of its descriptors

    # Steps

    def ask(self, method: str, params: dict[str, Any], on_event: Callable[[Any], None] | None = None) -> Any:
        """A request and its reply, or the RESULT frame that answers it (an Answer). Asked again if the server was lost
        meanwhile."""
        return self._retrying(lambda: self._ask_once(method, params, on_event))

    def _retrying(self, attempt: Callable[[], Any]) -> Any:
        patience = Patience()
        while True:
            self.open()
            patience.asks()
            try:
                return attempt()
            except (ConnectionError, BrokenPipeError):
                self.close()
                patience.lost()

    def _ask_once(self, method: str, params: dict[str, Any], on_event: Callable[[Any], None] | None) -> Any:
        assert self.sock is not None
        number = self._send_request(self.sock, method, params)
        while True:
            frame = self._receive()
            if frame.number != number or frame.kind not in (Kind.REPLY, Kind.EVENT, Kind.RESULT):
                self.endpoint.skip(frame)
                continue  # late words about a call that was given up
            if frame.kind == Kind.RESULT:
                return Answer(frame, self.endpoint.pieces(frame))
            body = self._assembler.feed(frame.kind, frame.flags, frame.number, frame.body)
            if body is None and frame.flags & Flag.MORE:
                continue
            if frame.kind == Kind.EVENT:
                if on_event is not None:
                    on_event(body)
                continue
            if frame.status:
                raise_error(body)
            return body

    def _send_request(self, sock: socket.socket, method: str, params: dict[str, Any]) -> int:
        """Its number, which the answers bear."""
        number = next(self._numbers)
        for frame in encode(Kind.REQUEST, number, {"method": method, "params": params}):
            sock.send(frame)
        return number

    def follow(
        self,
        method: str,
        params: dict[str, Any],
        on_event: Callable[[Any], None],
        ended: threading.Event,
        ready: threading.Event,
    ) -> None:
        """A subscription: events until `ended` is set by one of them. ConnectionError when the server is lost."""
        sock = self.open()
        number = self._send_request(sock, method, params)
        while not ended.is_set():
            self.busy = False
            readable(sock, None)
            self.busy = True  # before the frame is taken: see `behind`
            frame = self._receive()
            if frame.number != number:
                continue
            body = self._assembler.feed(frame.kind, frame.flags, frame.number, frame.body)
            if frame.kind == Kind.EVENT and body is not None:
                on_event(body)
            elif frame.kind == Kind.REPLY and frame.status:
                raise_error(body)
            elif frame.kind == Kind.REPLY:
                ready.set()

    def behind(self) -> bool:
        """For another thread: something has come for `follow` that its `on_event` has not seen, or not to its end."""
        sock = self.sock
        return sock is not None and (readable(sock, 0) or self.busy)

    def exchange(self, step: Send) -> Answer:
        """Send a value and wait for its answer; sent again, marked so, if the server was lost meanwhile."""
        call = step.call or self._ids.next()
        if self.sock is None:
            answer = self._exchange_again(step, call, step.flags)
        else:  # the usual case, without ceremony: this is every `.remote()`
            try:
                answer = self._exchange_once(step, call, step.flags)
            except ConnectionError:
                self.close()
                answer = self._exchange_again(step, call, step.flags | Flag.AGAIN)
        display.show_first()
        return answer

    def _exchange_again(self, step: Send, call: bytes, flags: int) -> Answer:
        """On a connection that is still to be made, as often as it takes."""

        def attempt() -> Answer:
            nonlocal flags
            sent, flags = flags, flags | Flag.AGAIN
            return self._exchange_once(step, call, sent)

        return self._retrying(attempt)  # type: ignore[no-any-return]

    def _exchange_once(self, step: Send, call: bytes, flags: int) -> Answer:
        sock = self.sock
        assert sock is not None
        header = (step.kind, flags, 0, 0, step.number, 0, call, 0, step.inputs)
        self.endpoint.send(sock, header, step.payload)
        _waiting.append(self)
        try:
            while True:
                awake = len(_waiting) == 1 and step.kind == Kind.CALL
                frame = self._lookout.receive(sock, self.endpoint) if awake else receive(sock, self.endpoint)
                if frame is None:
                    raise ConnectionResetError
                if frame.call == call and frame.kind in (Kind.RESULT, Kind.CHUNK_ACK):
                    return Answer(frame, self.endpoint.pieces(frame))
                self.endpoint.skip(frame)
        finally:
            _waiting.pop()

    def _receive(self) -> Frame:
        assert self.sock is not None
        frame = receive(self.sock, self.endpoint)
        if frame is None:
            raise ConnectionResetError
        return frame

    def release_unused(self) -> None:
        """Tell the owners which segments nothing here refers to any more."""
        if self.sock is None:
            return
        for number in self.endpoint.maps.unused():
            try:
                send(self.sock, [Message([pack(Kind.RELEASE, number=number)], [])])
            except ConnectionError:
                return


class _PerThread(threading.local):
    channel: Channel | None = None


_threads = _PerThread()


def current() -> Channel:
    """This thread's connection."""
    channel = _threads.channel
    if channel is not None and channel.usable:
        return channel
    if channel is not None:
        channel.abandon()
    channel = _threads.channel = Channel()
    return channel


def drive(steps: Steps[R]) -> R:
    """Run steps on this thread's connection, blocking."""
    channel = current()
    if channel.endpoint.maps.in_use:
        channel.release_unused()
    try:
        step = next(steps)
        while True:
            try:
                value: Any = channel.exchange(step) if isinstance(step, Send) else _ask(channel, step)
            except Exception as problem:
                step = steps.throw(problem)
            else:
                step = steps.send(value)
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]


def _ask(channel: Channel, step: Ask) -> Any:
    return channel.ask(step.method, step.params, step.on_event)
