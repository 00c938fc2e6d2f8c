"""Makes a user namespace, which gives every capability inside: by unshare, by clone, by clone3."""

import ctypes
import os

NEWUSER, SIGCHLD, CLONE3 = 0x10000000, 17, 435
CLONE, UNSHARE = {"x86_64": (56, 272), "aarch64": (220, 97)}.get(os.uname().machine, (-1, -1))
libc = ctypes.PyDLL(None, use_errno=True)
arguments = (ctypes.c_uint64 * 11)(NEWUSER, 0, 0, 0, SIGCHLD)
for way, number, given in (
    ("clone3", CLONE3, (arguments, ctypes.sizeof(arguments))),
    ("clone", CLONE, (NEWUSER | SIGCHLD, 0, 0, 0, 0)),
    ("unshare", UNSHARE, (NEWUSER,)),
):
    result = libc.syscall(number, *given)
    if result == 0 and way != "unshare":
        os._exit(0)
    if result >= 0:
        print(f"succeeded: by {way}")
        break
