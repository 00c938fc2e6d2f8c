"""Connects to a TCP port of the host."""

import json
import socket
import sys

facts = json.loads(sys.argv[1])
for family in (socket.AF_INET, socket.AF_INET6):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        with socket.socket(family) as sock:
            sock.settimeout(5)
            sock.connect((host, facts["port"]))
            if sock.recv(5) == b"hello":
                print(f"succeeded: connected to {host}:{facts['port']}")
                break
    except OSError:
        continue
