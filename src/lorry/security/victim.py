"""What attacks are aimed at: a stand-in for the server, a process of its own. Standard library only.

It holds a secret in its environment and an open file, and says hello on a TCP port, an abstract and a Unix socket.
It prints the port when all is ready, and ends with its standard input.
"""

import contextlib
import os
import select
import socket
import sys


def main(database: str, unix: str, abstract: str) -> None:
    held = os.open(database, os.O_RDONLY)
    doors = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    doors[1].bind(unix)
    os.chmod(unix, 0o666)  # noqa: S103 - a container has another user id; its folder is closed to all others
    doors[2].bind(f"\0{abstract}")
    for door in doors[1:]:
        door.listen()
    print(doors[0].getsockname()[1], flush=True)
    guests = []
    by_descriptor = {door.fileno(): door for door in doors}
    while True:
        ready, _, _ = select.select([0, *by_descriptor], [], [])
        if 0 in ready:
            os.close(held)
            return
        for fd in ready:
            guest, _ = by_descriptor[fd].accept()
            guests.append(guest)
            with contextlib.suppress(OSError):
                guest.send(b"hello")


if __name__ == "__main__":
    main(*sys.argv[1:])
