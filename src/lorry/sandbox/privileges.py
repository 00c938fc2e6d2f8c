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
SETFCAP = 31
"""Who maps uid 0 of a user namespace into another must have this there (Linux 5.12), and a template's forks do. It lets
a process mark its own files with capabilities, which no mount of a sandbox honours."""
SET_DUMPABLE, DROP_BOUNDING, SET_NO_NEW_PRIVS, AMBIENT, CLEAR_ALL = 4, 24, 38, 47, 4


def make_namespaces(config: LaunchConfig) -> None:
    flags = NEWNS | NEWPID | NEWIPC | NEWUTS | (NEWNET if config["block_network"] else 0)
    uid, gid = os.getuid(), os.getgid()
    at("making namespaces")
    if config["owner"] is None and config["ids"]:
        child, tell = map_subordinate(config["ids"])
        must(libc.unshare(flags | NEWUSER))
        os.close(tell)
        at("mapping subordinate ids with newuidmap and newgidmap")
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise OSError(1, "they refused: see /etc/subuid and /etc/subgid")
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    elif config["owner"] is None:
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


def map_ranges(proc: str, ids: list[tuple[int, int, int]], dir_fd: int | None = None) -> None:
    """By the host's root. A build may change its groups, and apt does."""
    at("mapping the user ids of the build")
    text = "\n".join(f"{inside} {outside} {count}" for inside, outside, count in ids)
    write(f"{proc}/uid_map", text, dir_fd)
    write(f"{proc}/gid_map", text, dir_fd)


def map_subordinate(ids: list[tuple[int, int, int]]) -> tuple[int, int]:
    """By an ordinary user: a child outside the namespace that is about to be made runs newuidmap and newgidmap, which
    alone may write more than one id. (its pid, a descriptor to be closed when the namespace is there)."""
    made, tell = os.pipe()
    process = str(os.getpid())
    child = os.fork()
    if child:
        os.close(made)
        return child, tell
    os.close(tell)
    os.read(made, 1)
    uids = [str(number) for row in ids for number in row]
    gids = [str(number) for row in [(0, os.getgid(), 1), *ids[1:]] for number in row]
    code = os.spawnv(os.P_WAIT, "/usr/bin/newuidmap", ["newuidmap", process, *uids])  # noqa: S606
    os._exit(code or os.spawnv(os.P_WAIT, "/usr/bin/newgidmap", ["newgidmap", process, *gids]))  # noqa: S606


def become_builder(config: LaunchConfig) -> None:
    """In place of `drop_privileges`: uid 0 of the user namespace, with its capabilities, and mounts and processes that
    belong to it: the ones made so far are the host's root's, which the build may not change."""
    if config["owner"] is not None:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    at("making the build's namespaces")
    must(libc.unshare(NEWNS | NEWPID))
    must(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    must(libc.prctl(SET_DUMPABLE, 0, 0, 0, 0))


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
    drop_capabilities(keep=SETFCAP if config["template"] else None)
    must(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    # B has the program's user id: this keeps its memory and descriptors closed to the program. exec resets
    # it.
    must(libc.prctl(SET_DUMPABLE, 0, 0, 0, 0))


def drop_capabilities(keep: int | None = None) -> None:
    for capability in range(64):
        if capability != keep and libc.prctl(DROP_BOUNDING, capability, 0, 0, 0) < 0:
            break
    libc.prctl(AMBIENT, CLEAR_ALL, 0, 0, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of capabilities 0-31 and of the others
    if keep is not None:
        sets[0] = sets[1] = 1 << keep
    must(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), sets))
