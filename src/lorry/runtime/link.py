"""The container's connection to the server: survives a server that dies and comes back."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from lorry import errors
from lorry.runtime import output
from lorry.timeouts import CONNECT_POLL, RECONNECT
from lorry.wire.control import Assembler, encode, raise_error
from lorry.wire.endpoint import Endpoint, Frame, Message, receive, send
from lorry.wire.frames import PROTOCOL_VERSION, Flag, Header, Kind, pack
from lorry.wire.lookout import Lookout

EXIT_SERVER_GONE = 75
"""EX_TEMPFAIL of sysexits.h: the server did not come back within RECONNECT seconds."""

Payload = tuple[bytes, list[memoryview]]


class Link:
    """One socket, one Endpoint. `running` tells a new server what this container still works on."""

    def __init__(
        self,
        path: str,
        container_id: str,
        token: str,
        running: Callable[[], list[dict[str, Any]]],
        role: str = "container",
    ) -> None:
        self._path = path
        self._container_id = container_id
        self._token = token
        self._running = running
        self._role = role
        self._numbers = itertools.count(1)
        self._assembler = Assembler()
        self._early: deque[Frame] = deque()
        """Frames that came while a reply was awaited."""
        self._asking = False
        """A reply is awaited: what comes is read by who asked."""
        self.endpoint = Endpoint()
        self._lookout = Lookout()
        self.sock = socket.socket()
        self.sock.close()
        self.moved: Callable[[socket.socket], None] = lambda _before: None
        """Called with the socket before, when there is a new one. It is closed afterwards."""
        self.booted = False
        """The server knows that this container takes inputs."""
        self.forked = False
        """This process is a fork that user code made: the connection and the inputs are its parent's."""
        os.register_at_fork(after_in_child=self._disown)

    def _disown(self) -> None:
        self.forked = True
        self.sock.close()

    def end_fork(self) -> None:
        """In a fork that came back out of the user's function: its work is done, the parent answers."""
        if self.forked:
            output.flush()
            os._exit(0)

    def connect(self) -> dict[str, Any]:
        """Connect and say who we are; waits up to RECONNECT seconds for a server, then ends the process."""
        deadline = time.monotonic() + RECONNECT
        before = self.sock
        while True:
            try:
                self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self.sock.connect(self._path)
                self.endpoint.renew()
                self._assembler = Assembler()
                self._early.clear()  # leases of a server that is no more
                answer = self._hello()
                self.moved(before)
                before.close()
                return answer
            except errors.Error as refused:
                print(f"lorry: the server does not know this container any more, ending: {refused}", file=sys.stderr)
                os._exit(EXIT_SERVER_GONE)
            except (ConnectionError, FileNotFoundError, BlockingIOError):
                self.sock.close()
                if time.monotonic() > deadline:
                    print("lorry: the server is gone for good, ending", file=sys.stderr)
                    os._exit(EXIT_SERVER_GONE)
                time.sleep(CONNECT_POLL)

    def _hello(self) -> dict[str, Any]:
        answer = self._request_once(
            "hello",
            {
                "protocol": PROTOCOL_VERSION,
                "role": self._role,
                "container_id": self._container_id,
                "token": self._token,
                "running": self._running(),
                "booted": self.booted,
            },
        )
        return dict(answer)

    def request(self, method: str, parameters: dict[str, Any]) -> Any:
        """A control request; asked again after a reconnect."""
        while True:
            try:
                return self._request_once(method, parameters)
            except ConnectionError:
                self.connect()

    def _request_once(self, method: str, parameters: dict[str, Any]) -> Any:
        self._asking = True
        try:
            return self._asked(method, parameters)
        finally:
            self._asking = False

    def _asked(self, method: str, parameters: dict[str, Any]) -> Any:
        number = next(self._numbers)
        for buffers in encode(Kind.REQUEST, number, {"method": method, "params": parameters}):
            self.sock.send(buffers)
        while True:
            frame = receive(self.sock, self.endpoint)
            if frame is None:
                raise ConnectionResetError
            if frame.kind != Kind.REPLY:
                self._early.append(frame)
            elif frame.number == number:
                body = self._assembler.feed(frame.kind, frame.flags, frame.number, frame.body)
                if body is not None or not frame.flags & Flag.MORE:
                    if frame.status:
                        raise_error(body)
                    return body

    def send(self, header: Header, payload: Payload, selection: bytes = b"") -> None:
        """Send a value, to the next server if this one dies meanwhile."""
        while True:
            try:
                self.endpoint.send(self.sock, header, payload, selection)
                return
            except ConnectionError:
                self.connect()

    def send_plain(self, message: Message) -> None:
        """A frame without payload; dropped when the server is away, because a new one would not understand it."""
        try:
            send(self.sock, [message])
        except ConnectionError:
            return

    def release_unused(self) -> None:
        if not self.endpoint.maps.in_use:
            return
        for number in self.endpoint.maps.unused():
            self.send_plain(Message([pack(Kind.RELEASE, number=number)], []))

    def receive(self) -> Frame:
        """The next frame; reconnects as often as needed."""
        while True:
            if self._early:
                return self._early.popleft()
            frame = self._lookout.receive(self.sock, self.endpoint)
            if frame is not None:
                return frame
            self.connect()

    def poll(self) -> Frame | None:
        """A frame that is already here, or None. Reconnects if the server died: this runs in a signal handler
        between two instructions of user code. The next signal may come meanwhile: it must not take the greeting's
        reply away, and what it was for is read here."""
        while not self._asking:
            if self._early:
                return self._early.popleft()
            try:
                frame = receive(self.sock, self.endpoint, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            if frame is not None:
                return frame
            self.connect()
        return None

    @property
    def waiting(self) -> bool:
        """A frame is here that no socket will tell of."""
        return bool(self._early)

    def control(self, frame: Frame) -> Any:
        """The JSON of a control frame, or None while more of it is to come."""
        return self._assembler.feed(frame.kind, frame.flags, frame.number, frame.body)


def on_nudge(handler: Callable[[], None]) -> None:
    """SIGUSR1 from the server means: look at your socket."""
    signal.signal(signal.SIGUSR1, lambda _number, _frame: handler())
