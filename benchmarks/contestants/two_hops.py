"""The floor: client → uvloop server → runner → server → client, nothing but frames and pickles.

Three processes, SOCK_SEQPACKET socket pairs and recvmsg in the server, as in Lorry's hot path, but without
a call table, journal, leases or time-outs. What `.remote()` costs above this is what Lorry adds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

import turns
import work

HEADER = struct.Struct("<IBBHQQ")
FRAME = 65536


def runner(server: socket.socket) -> None:
    buffer = bytearray(FRAME)
    while size := server.recv_into(buffer):
        header = HEADER.unpack_from(buffer)
        args, kwargs = pickle.loads(memoryview(buffer)[HEADER.size : size])
        result = pickle.dumps(work.noop(*args, **kwargs), 5)
        server.send(HEADER.pack(len(result), 2, 0, 0, header[4], 0) + result)


async def switch(client: socket.socket, container: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    pending: dict[int, int] = {}

    def forward(source: socket.socket, target: socket.socket) -> Callable[[], None]:
        def on_readable() -> None:
            data, _, _, _ = source.recvmsg(FRAME, 64)
            if not data:
                loop.remove_reader(source)
                if not ended.done():
                    ended.set_result(None)
                return
            header = HEADER.unpack_from(data)
            pending[header[4]] = header[5]
            target.send(data)

        return on_readable

    for source, target in ((client, container), (container, client)):
        source.setblocking(False)
        loop.add_reader(source, forward(source, target))
    await ended


def start() -> socket.socket:
    """The client's end."""
    client, client_side = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    runner_side, container = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        for unused in (client, client_side, runner_side):
            unused.close()
        runner(container)
        os._exit(0)
    if os.fork() == 0:
        import uvloop

        client.close()
        container.close()
        uvloop.run(switch(client_side, runner_side))
        os._exit(0)
    for unused in (client_side, runner_side, container):
        unused.close()
    return client


if __name__ == "__main__":
    server = start()
    numbers = itertools.count()

    def call() -> Any:
        body = pickle.dumps(((1,), {}), 5)
        server.sendmsg([HEADER.pack(len(body), 1, 0, 0, next(numbers), 7), body])
        return pickle.loads(memoryview(server.recv(FRAME))[HEADER.size :])

    turns.serve({"call": lambda n: turns.latencies(call, n)})
