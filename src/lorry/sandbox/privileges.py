"""The launcher's namespaces, and how it gives up everything that the program must not have.

Part of the launcher (see there). As root it makes namespaces and mounts first, because only root may read
what lies in a home of mode 0700, and leaves root afterwards; as an ordinary user it needs the user namespace
for the rest.
"""

from __future__ import annotations

import ctypes
import os
import sys

from .mounts import CLOEXEC, KEYCTL, at, libc, must, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .spawn import LaunchConfig

NEWNS, NEWUTS, NEWIPC = 0x20000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
SET_DUMPABLE, DROP_BOUNDING, SET_NO_NEW_PRIVS, AMBIENT, CLEAR_ALL = 4, 24, 38, 47, 4


def make_namespaces(config: LaunchConfig) -> None:
    flags = NEWNS | NEWPID | NEWIPC | NEWUTS | (NEWNET if config["block_network"] else 0)
    uid, gid = os.getuid(), os.getgid()
    at("making namespaces")
    if config["owner"] is None:
        must(libc.unshare(flags | NEWUSER))
        map_ids("/proc/self", uid, gid)
    else:
        must(libc.unshare(flags))
    at("naming the host")
    must(libc.sethostname(config["hostname"].encode(), len(config["hostname"])))
    if config["block_network"]:
        at("bringing the loopback interface up")
        link = must(libc.socket(2, 2 | CLOEXEC, 0))
        up = ctypes.create_string_buffer(b"lo".ljust(16, b"\0") + (0x41).to_bytes(2, sys.byteorder), 40)
        must(libc.ioctl(link, ctypes.c_ulong(0x8914), up))
        os.close(link)


def map_ids(proc: str, uid: int, gid: int, dir_fd: int | None = None) -> None:
    at("mapping the user id of the sandbox")
    write(f"{proc}/setgroups", "deny", dir_fd)
    write(f"{proc}/uid_map", f"0 {uid} 1", dir_fd)
    write(f"{proc}/gid_map", f"0 {gid} 1", dir_fd)


def leave_root(config: LaunchConfig) -> None:
    # The inherited session keyring may hold the server's keys. Not fatal: some container runtimes forbid
    # keyctl.
    libc.syscall(KEYCTL, 1, None)
    if config["owner"] is not None:
        at("leaving root's user id")
        os.setgroups([])
        must(libc.unshare(NEWUSER))


def drop_privileges(config: LaunchConfig) -> None:
    if config["owner"] is not None:
        os.setresgid(0, 0, 0)  # 0 in here is the unprivileged id out there: A has written the maps
        os.setresuid(0, 0, 0)
    at("dropping capabilities")
    for capability in range(64):
        if libc.prctl(DROP_BOUNDING, capability, 0, 0, 0) < 0:
            break
    libc.prctl(AMBIENT, CLEAR_ALL, 0, 0, 0)
    must(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()))
    must(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    # B has the program's user id: this keeps its memory and descriptors closed to the program. exec resets
    # it.
    must(libc.prctl(SET_DUMPABLE, 0, 0, 0, 0))
