"""Waiting for an answer without falling asleep, for as long as that pays.

A process that sleeps leaves an idle CPU, and to wake that costs tens of microseconds, most of all in a virtual
machine: half of what a warm call takes. So whoever expects a frame soon looks for it some times before it sleeps.
The CPU is offered to everyone else at each look. Where that does not help, because the function is slow or others
need the CPU, it is soon given up, and tried again now and then.
"""

from __future__ import annotations

import os
import socket
import time

from lorry.wire.endpoint import Endpoint, Frame, receive

LOOK_SECONDS = 100e-6
"""About twice a warm call."""
MAX_PAUSE = 64
"""Frames that are slept for after a look in vain, at most."""
_DONT_WAIT = int(socket.MSG_DONTWAIT)


class Lookout:
    def __init__(self) -> None:
        self._pause = 0
        self._left = 0

    def receive(self, sock: socket.socket, endpoint: Endpoint) -> Frame | None:
        """As `endpoint.receive`, from a blocking socket."""
        if self._left:
            self._left -= 1
            return receive(sock, endpoint)
        until = time.perf_counter() + LOOK_SECONDS
        while True:
            try:
                frame = receive(sock, endpoint, _DONT_WAIT)
            except BlockingIOError:
                if time.perf_counter() > until:
                    self._left = self._pause = min(MAX_PAUSE, 2 * self._pause + 1)
                    return receive(sock, endpoint)
                os.sched_yield()
            else:
                self._pause = 0
                return frame
