"""A socket to the server: the one that is there, or the embedded one that is started for it."""

from __future__ import annotations

import socket
import time

from lorry import config, errors
from lorry.sdk import start_server
from lorry.timeouts import CONNECT_POLL, RECONNECT, SERVER_START
from lorry.wire import identity

ABSENT = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)
"""What connecting raises where no server listens."""


def connect(*, may_start: bool = True) -> socket.socket:
    """A connected socket; starts the embedded server if there is none. ConnectionError says why not."""
    if identity.container is not None:
        return _connect_inside(identity.container.socket_path)
    settings = config.resolve()
    path = str(settings.client_socket)
    try:
        return _connect_once(path)
    except ABSENT:
        if not may_start:
            raise errors.ConnectionError("no Lorry server is running; `lorry server start` starts one") from None
    keeper = start_server.start(settings)
    deadline = time.monotonic() + SERVER_START
    while True:
        try:
            return _connect_once(path)
        except ABSENT:
            ended = keeper.poll()
            if time.monotonic() > deadline or (ended is not None and ended != 0):
                raise silent_server() from None
            time.sleep(CONNECT_POLL)


def _connect_inside(path: str) -> socket.socket:
    """In a container, which starts no server but waits for its own."""
    deadline = time.monotonic() + RECONNECT
    while True:
        try:
            return _connect_once(path)
        except ABSENT:
            if time.monotonic() > deadline:
                raise errors.ConnectionError(f"the server at {path} did not come back") from None
            time.sleep(CONNECT_POLL)


def _connect_once(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def silent_server() -> errors.ConnectionError:
    """For one that was started and gives no answer."""
    settings = config.resolve()
    tail = start_server.log_tail(settings)
    return errors.ConnectionError(
        f"the Lorry server did not start. The end of {settings.state_dir}/server.log:\n{tail}"
    )
