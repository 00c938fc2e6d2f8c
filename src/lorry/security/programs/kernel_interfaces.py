"""Reaches parts of the kernel with a history of holes: keyrings, bpf, perf, userfaultfd, io_uring, AF_ALG sockets."""

import ctypes
import errno
import os
import socket

CALLS = {
    "io_uring_setup": (425, 425, (1, 0)),
    "keyctl": (250, 219, (0, -4, 0)),
    "bpf": (321, 280, (0, 0, 0)),
    "userfaultfd": (323, 282, (1,)),
    "perf_event_open": (298, 241, (0, 0, -1, -1, 0)),
}
REFUSED = (errno.EPERM, errno.ENOSYS, errno.EACCES)
libc = ctypes.CDLL(None, use_errno=True)
reached = []
for name, (intel, arm, arguments) in CALLS.items():
    number = {"x86_64": intel, "aarch64": arm}.get(os.uname().machine)
    if number is not None and (libc.syscall(number, *arguments) >= 0 or ctypes.get_errno() not in REFUSED):
        reached.append(name)
try:
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()
    reached.append("AF_ALG")
except OSError:
    pass
if reached:
    print(f"succeeded: {', '.join(reached)}")
