"""Waiting for a frame without falling asleep, where that pays.

A process that sleeps leaves an idle CPU, and to wake that costs tens of microseconds, most of all in a virtual
machine: half of what a warm call takes. So whoever expects a frame soon may look for it some times before it sleeps,
and offers the CPU to everyone else at each look. Whether that helps depends on the machine and on who else wants its
CPUs: beside a busy core it delays the process that is waited for. So both ways are tried now and then, and the faster
one is taken.
"""

from __future__ import annotations

import os
import socket
import time

from lorry.wire.endpoint import Endpoint, Frame, receive

LOOK_SECONDS = 100e-6
"""About twice a warm call. What takes longer is not waited for awake."""
TRIAL = 16
"""Frames for which each way is tried …"""
WORTH = 0.8
"""Below this share of the time asleep, to be awake is worth a CPU."""
PERIOD = 256
"""… out of so many."""
_DONT_WAIT = int(socket.MSG_DONTWAIT)


class Lookout:
    """For one connection and one thread."""

    def __init__(self) -> None:
        self._frames = 0
        self._asleep = self._awake = 0.0
        """Seconds that the trials took."""

    def receive(self, sock: socket.socket, endpoint: Endpoint) -> Frame | None:
        """As `endpoint.receive`, from a blocking socket."""
        turn = self._frames = self._frames % PERIOD + 1
        if turn > 2 * TRIAL:
            return (look if self._awake < WORTH * self._asleep else receive)(sock, endpoint)
        began = time.perf_counter()
        if turn <= TRIAL:
            if turn == 1:
                self._asleep = self._awake = 0.0
            frame = receive(sock, endpoint)
            self._asleep += min(LOOK_SECONDS, time.perf_counter() - began)
        else:
            frame = look(sock, endpoint)
            self._awake += min(LOOK_SECONDS, time.perf_counter() - began)
        return frame


def look(sock: socket.socket, endpoint: Endpoint) -> Frame | None:
    """Awake for a while, then asleep."""
    until = time.perf_counter() + LOOK_SECONDS
    while True:
        try:
            return receive(sock, endpoint, _DONT_WAIT)
        except BlockingIOError:
            if time.perf_counter() > until:
                return receive(sock, endpoint)
            os.sched_yield()
