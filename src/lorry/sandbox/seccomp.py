"""Filters of system calls, as classic BPF and without a library: what is left of the kernel for a program to attack.

Standard library only, and nothing imported after the root has changed: the launcher installs them, and forks of a
template do inside a container. Both filters are deny lists. A list of what is allowed would have to grow with every
library that an image may hold; what is denied here has no place in a container, or is the door of known escapes.

    container   everything below
    template    the same without what a template needs to fork containers into namespaces of their own

A denied call fails with EPERM, as it would without the capability. clone3 fails with ENOSYS, since its flags lie in
memory that a filter cannot read: the C library then uses clone, whose flags are looked at. A call by the numbers of
another architecture (x32 and 32-bit programs) ends the process, for its numbers mean other calls.
"""

from __future__ import annotations

import ctypes
import os

from .mounts import libc, must

CONTAINER, TEMPLATE = "container", "template"

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine → its number in seccomp data, and its column in the tables."""

DENIED = {
    # Namespaces and mounts. setns would also enter a neighbour's namespace by a descriptor.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # Other processes. pidfd_getfd reaches across pid namespaces: a socket tells the pidfd of who is at its other end,
    # and an ordinary user's server has the same user id as its containers.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Large interfaces of the kernel with a history of holes.
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    # Keys: keyrings are not in any namespace but the user's.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Files by number instead of path, past every mount.
    "open_by_handle_at": (304, 265),
    # The machine.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "lookup_dcookie": (212, 18),
    "iopl": (172, None),
    "ioperm": (173, None),
}
"""Name → number on x86_64 and on aarch64; None where there is no such call."""

FOR_TEMPLATES = ("unshare", "mount", "umount2", "pivot_root")
"""What a template is allowed besides: a fork of it makes the container's namespaces and mounts, then installs the
other filter."""

CLONE3, CLONE, IOCTL, SOCKET = (435, 435), (56, 220), (16, 29), (41, 198)
CLONE_NEW = 0x7E020000
"""Every CLONE_NEW flag that clone knows (that of time namespaces is not one)."""
IOCTLS = (0x5412, 0x541C)
"""TIOCSTI types into a terminal in another's name; TIOCLINUX can do the same on a console."""
FAMILIES = (1, 2, 10, 16)
"""Unix, IPv4, IPv6, netlink. The others are for root, or, like AF_VSOCK, not bound to a network namespace, or, like
AF_ALG, a large piece of kernel that nobody here needs."""

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, RETURN, IF_EQUAL, IF_AT_LEAST, IF_ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x45
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
"""Offsets in struct seccomp_data. Only the low halves of arguments are loaded: the kernel itself takes no more of
these."""
X32_BIT, NO_CALL = 0x40000000, 0xFFFFFFFF
SET_NO_NEW_PRIVS, SET_SECCOMP, MODE_FILTER = 38, 22, 2

Line = tuple[int, int, str, str]
"""(operation, operand, label if true, label if false); an empty label is the next line."""

_programs: dict[str, bytes] = {}


def is_known() -> bool:
    """Whether there are numbers for this machine's architecture. Without them nothing is filtered."""
    return os.uname().machine in ARCHITECTURES


def program(level: str) -> bytes:
    """An array of struct sock_filter, the same bytes each time. Raises KeyError where not `is_known`."""
    if level not in _programs:
        _programs[level] = assemble(level, os.uname().machine)
    return _programs[level]


def install(level: str) -> None:
    """For this thread and all that it starts, for ever. Raises OSError. Nothing happens where not `is_known`."""
    if not is_known():
        return
    code = ctypes.create_string_buffer(program(level))
    header = (ctypes.c_uint64 * 2)(len(code) // 8, ctypes.addressof(code))  # struct sock_fprog
    must(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    must(libc.prctl(SET_SECCOMP, MODE_FILTER, header, 0, 0))


def assemble(level: str, machine: str) -> bytes:
    """The program of one level for one machine. Raises KeyError for a machine without a table."""
    architecture, column = ARCHITECTURES[machine]
    kept = FOR_TEMPLATES if level == TEMPLATE else ()
    denied = [numbers[column] for name, numbers in DENIED.items() if name not in kept]
    lines: list[tuple[str, Line]] = [
        ("", (LOAD, ARCHITECTURE_AT, "", "")),
        ("", (IF_EQUAL, architecture, "", "kill")),
        ("", (LOAD, NUMBER_AT, "", "")),
    ]
    if machine == "x86_64":
        # -1 is a call that a tracer has taken away: the kernel answers it by itself.
        lines += [("", (IF_EQUAL, NO_CALL, "allow", "")), ("", (IF_AT_LEAST, X32_BIT, "kill", ""))]
    lines += [("", (IF_EQUAL, number, "deny", "")) for number in sorted(n for n in denied if n is not None)]
    lines += [
        ("", (IF_EQUAL, CLONE3[column], "no such call", "")),
        ("", (IF_EQUAL, CLONE[column], "clone", "")),
        ("", (IF_EQUAL, IOCTL[column], "ioctl", "")),
        ("", (IF_EQUAL, SOCKET[column], "socket", "allow")),
        ("clone", (LOAD, ARGUMENTS_AT, "", "")),
        ("", (IF_ANY_BIT, CLONE_NEW, "deny", "allow")),
        ("ioctl", (LOAD, ARGUMENTS_AT + 8, "", "")),
        *(("", (IF_EQUAL, request, "deny", "")) for request in IOCTLS),
        ("", (RETURN, ALLOW, "", "")),
        ("socket", (LOAD, ARGUMENTS_AT, "", "")),
        *(("", (IF_EQUAL, family, "allow", "")) for family in FAMILIES),
        ("", (RETURN, ERRNO | EAFNOSUPPORT, "", "")),
        ("allow", (RETURN, ALLOW, "", "")),
        ("deny", (RETURN, ERRNO | EPERM, "", "")),
        ("no such call", (RETURN, ERRNO | ENOSYS, "", "")),
        ("kill", (RETURN, KILL_PROCESS, "", "")),
    ]
    return _encode(lines)


def _encode(lines: list[tuple[str, Line]]) -> bytes:
    """struct sock_filter: 16 bits of operation, two jumps of 8 bits, counted from the next line, 32 of operand."""
    places = {label: place for place, (label, _) in enumerate(lines) if label}
    code = b""
    for place, (_, (operation, operand, true, false)) in enumerate(lines):
        jumps = bytes(places[label] - place - 1 if label else 0 for label in (true, false))
        code += operation.to_bytes(2, "little") + jumps + operand.to_bytes(4, "little")
    return code
