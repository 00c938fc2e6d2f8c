"""Connects to an abstract Unix socket of the host: those belong to the network, not to the file system."""

import json
import socket
import sys

name = json.loads(sys.argv[1])["abstract"]
try:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(f"\0{name}")
        if sock.recv(5) == b"hello":
            print(f"succeeded: connected to @{name}")
except OSError:
    pass
