"""The program that joins a running sandbox and starts one more program in it. Standard library only, one thread,
started by `entering.py`.

J, a child of the server, joins the namespaces of the sandbox's program, forks P and stays. P joins the control group,
gives up every privilege as the sandbox's own program did, and executes the command. J passes signals on and reports
how P ended. It lives in the server's pid namespace, where nothing in the sandbox can see it; it ends P when the server
is gone, and whoever ends the sandbox ends P.

Descriptor 0 is a stream socket. The server writes 4 bytes of length, a marshalled EnterConfig and then one byte per
signal to send; end of file means that the server died. J writes lines: `terminal` (with the terminal's other end as a
passed descriptor), then `started <P>` or `error` with errno, step and text on lines of their own, at last
`exit <code>`, negative for a signal.

Danger: after the namespaces have changed the standard library is gone. Whatever runs later must be imported at the top.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` itself builds enums, which costs 2 ms
import _socket  # as `socket` does
import array
import fcntl
import marshal
import os
import resource
import select
import sys

from . import seccomp
from .enter_files import perform
from .launcher import SET_SUBREAPER, replace, sweep
from .mounts import KEYCTL, Progress, at, libc, must, write
from .privileges import (
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    SET_DUMPABLE,
    SET_NO_NEW_PRIVS,
    drop_capabilities,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from .entering import EnterConfig

NAMESPACES = {"user": NEWUSER, "mnt": NEWNS, "pid": NEWPID, "ipc": NEWIPC, "uts": NEWUTS, "net": NEWNET}
TIOCSCTTY, TIOCSWINSZ, TIOCSPTLCK, TIOCGPTPEER = 0x540E, 0x5414, 0x40045431, 0x5441
SOL_SOCKET, SCM_RIGHTS, POLLIN = 1, 1, 1
SIGKILL = 9


def foreign(proc: int) -> int:
    """Flags of the namespaces of a process that are not ours. OSError if we may not look."""
    flags = 0
    for name, flag in NAMESPACES.items():
        theirs, ours = os.stat(f"ns/{name}", dir_fd=proc), os.stat(f"/proc/self/ns/{name}")
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            flags |= flag
    return flags


def started(proc: int) -> int:
    """Clock ticks since boot; see procfs.read_stat."""
    with open(os.open("stat", os.O_RDONLY, dir_fd=proc), "rb") as file:
        line = file.read()
    return int(line[line.rindex(b")") + 2 :].split()[19])


def join(candidates: list[tuple[int, int]]) -> None:
    """The namespaces of the first process that has its own root and that we may look at. The sandbox's first process is
    tried first: the program cannot change that one. An ordinary user may look at the program only, which may have
    made namespaces of its own; they are inside the sandbox all the same."""
    at("joining the namespaces of the container")
    problem = OSError(3, "no process of it is left")
    for pid, ticks in candidates:
        try:
            if join_one(pid, ticks):
                return
        except OSError as e:
            problem = e
    raise problem


def join_one(pid: int, ticks: int) -> bool:
    """False: it shares our root, or it is another process than the one that was meant."""
    handle = os.pidfd_open(pid)
    try:
        proc = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)  # of one process for ever; its start says of which
        try:
            flags = foreign(proc)
            if not flags & NEWNS or started(proc) != ticks:
                return False
        finally:
            os.close(proc)
        must(libc.setns(handle, flags))
        return True
    finally:
        os.close(handle)


def open_terminal(control: Any, size: tuple[int, int]) -> int:
    """A terminal of the sandbox's own /dev/pts; its other end goes to the server."""
    at("opening a terminal")
    near = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    fcntl.ioctl(near, TIOCSPTLCK, (0).to_bytes(4, sys.byteorder))
    far = fcntl.ioctl(near, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    set_size(far, *size)
    control.sendmsg([b"terminal\n"], [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [near]).tobytes())])
    os.close(near)
    return far


def set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, TIOCSWINSZ, array.array("H", [rows, columns, 0, 0]).tobytes())


def leave_privileges(owner: int | None) -> None:
    """As the launcher does for the sandbox's own program."""
    at("leaving all privileges")
    if owner is not None:
        os.setresgid(0, 0, 0)  # 0 in here is the unprivileged id out there
        os.setresuid(0, 0, 0)
    drop_capabilities()
    must(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    must(libc.prctl(SET_DUMPABLE, 0, 0, 0, 0))  # a change of ids has set it


def become_program(config: EnterConfig, control: Any, groups: list[int], tell: int) -> NoReturn:
    """P. `tell` closes on exec: that is how J learns of success."""
    at("joining the control group")
    for fd in groups:
        os.write(fd, b"0")
        os.close(fd)
    os.setsid()
    os.umask(0o022)
    for number in range(1, 32):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    if config["isolate"]:
        leave_privileges(config["owner"])
    streams = list(config["streams"])
    if config["terminal"]:
        streams = [open_terminal(control, config["terminal"])] * 3
    for fd, stream in enumerate(streams):
        os.dup2(stream, fd)
    for fd in {*streams, *config["streams"]}:
        os.close(fd)
    if config["terminal"]:
        fcntl.ioctl(0, TIOCSCTTY, 0)
    at(f"entering the working directory {config['cwd']}")
    os.chdir(config["cwd"])
    for which, limit in config["rlimits"]:
        resource.setrlimit(which, (limit, limit))
    if config["isolate"]:
        at("installing the filter of system calls")
        seccomp.install(seccomp.CONTAINER)
    if config["file"]:
        os.closerange(3, tell + 64)
        perform(*config["file"])
    at(f"executing {config['argv'][0]}")
    replace(config["argv"], config["env"])


def start(config: EnterConfig, control: Any) -> int:
    """P's pid once it is executed. OSError with the step in Progress, and P is gone, if that failed."""
    write("/proc/self/oom_score_adj", "200")
    at("opening the control group")
    groups = [os.open(path, os.O_WRONLY) for path in config["joins"]]
    libc.syscall(KEYCTL, 1, None)
    if config["isolate"]:
        if config["owner"] is not None:
            os.setgroups([])
        join(config["candidates"])
        must(libc.prctl(SET_DUMPABLE, 0, 0, 0, 0))  # P is seen in the sandbox before it has executed anything
    else:
        must(libc.prctl(SET_SUBREAPER, 1, 0, 0, 0))
    at("forking the program")
    told, tell = os.pipe()
    program = os.fork()
    if program == 0:
        try:
            become_program(config, control, groups, tell)
        except BaseException as e:
            os.write(tell, describe(e))
            os._exit(1)
    for fd in (tell, *groups, *config["streams"]):
        os.close(fd)
    problem = b""
    while piece := os.read(told, 65536):
        problem += piece
    os.close(told)
    if problem:
        os.waitpid(program, 0)
        control.sendall(problem)
        os._exit(1)
    return program


def watch(program: int, control: Any) -> int:
    """Its exit status. Signals that the server asks for go to its process group; SIGKILL when the server is gone."""
    ended = os.pidfd_open(program)
    poll = select.poll()
    poll.register(ended, POLLIN)
    poll.register(control.fileno(), POLLIN)
    while ended not in (ready := [fd for fd, _ in poll.poll()]):
        if control.fileno() not in ready:
            continue
        numbers = control.recv(64)
        if not numbers:
            poll.unregister(control.fileno())
        for number in numbers or (SIGKILL,):
            try:  # noqa: SIM105 - no contextlib in here
                os.killpg(program, number)
            except OSError:  # it has ended, or a set-user-id program is not ours to signal
                pass
    return os.waitpid(program, 0)[1]


def describe(problem: BaseException) -> bytes:
    number, text = 0, f"{type(problem).__name__}: {problem}"
    if isinstance(problem, OSError):
        number, text = problem.errno or 0, problem.strerror or text
    return f"error\n{number}\n{Progress.step}\n{text}\n".encode()


def main() -> None:
    control = _socket.socket(fileno=os.dup(0))
    size, data = int.from_bytes(control.recv(4, _socket.MSG_WAITALL), "little"), b""
    while len(data) < size:
        data += control.recv(size - len(data)) or sys.exit(1)
    config: EnterConfig = marshal.loads(data)  # noqa: S302 - it comes from our parent
    try:
        program = start(config, control)
    except Exception as e:
        control.sendall(describe(e))
        os._exit(1)
    try:
        control.sendall(f"started {program}\n".encode())
        status = watch(program, control)
        if not config["isolate"]:
            sweep(program)
        control.sendall(f"exit {os.waitstatus_to_exitcode(status)}\n".encode())
    except OSError:  # the server is gone; what it would be told is nobody's business any more
        os._exit(1)
    os._exit(0)
