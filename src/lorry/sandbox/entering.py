"""Starting one more program in a sandbox that runs: the server's side of `enter`. Blocking; callers use a thread."""

from __future__ import annotations

import array
import errno
import marshal
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypedDict

from lorry.errors import Error, InvalidError, NotFoundError, ResourceError
from lorry.sandbox.interface import Sandbox, SandboxProcess, SandboxSpec
from lorry.sandbox.limits import Limits, NoLimits
from lorry.sandbox.procfs import family, is_running
from lorry.sandbox.records import read_group
from lorry.sandbox.sealed import environment, interpreter
from lorry.sandbox.spawn import SOURCE, LaunchError
from lorry.sandbox.starting import USER_ERRNOS, USER_STEPS, limits_without_groups

ENTER_SOURCE = SOURCE.replace("sandbox.launcher", "sandbox.enter")
PATIENCE = 20.0
"""Seconds until the program must be executed. The sandbox's own program may have put anything in its way."""


class EnterConfig(TypedDict):
    isolate: bool
    owner: int | None
    candidates: list[tuple[int, int]]
    """Processes of the sandbox and their starts in ticks; the first that can be joined is."""
    joins: list[str]
    """Files of the control group to write oneself into."""
    rlimits: list[tuple[int, int]]
    streams: list[int]
    """stdin, stdout and stderr, as the program finds them; empty with a terminal."""
    terminal: tuple[int, int] | None
    """Rows and columns."""
    argv: list[str]
    file: tuple[str, str, str] | None
    """Instead of a program: verb, path, option; see `enter_files`."""
    env: dict[str, str]
    cwd: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is to be started."""

    argv: tuple[str, ...] = ()
    file: tuple[str, str, str] | None = None
    env: Mapping[str, str]
    """Complete."""
    cwd: str
    terminal: tuple[int, int] | None = None


@dataclass(slots=True, eq=False)
class Entered:
    """A program that was started. The descriptors are the caller's, who closes them; closing `control` kills it."""

    pid: int
    """On the host."""
    control: socket.socket
    """`exit <code>` comes here; a byte sent is a signal for its process group."""
    joiner: subprocess.Popen[bytes]
    stdin: int
    stdout: int
    stderr: int | None
    """None with a terminal, which is stdin and stdout at once."""


def enter(sandbox: Sandbox, process: SandboxProcess, spec: SandboxSpec, command: Command, isolate: bool) -> Entered:
    """Returns when it has been executed. InvalidError for a command that cannot be, NotFoundError if the sandbox has
    ended, ResourceError when the machine refuses."""
    if not is_running(process.pid, process.pid_started):
        raise NotFoundError(f"{process.container_id} has ended")
    ours, theirs = socket.socketpair()
    pipes = [] if command.terminal else [os.pipe(), os.pipe(), os.pipe()]
    near = [pipes[0][1], pipes[1][0], pipes[2][0]] if pipes else []
    far = [pipes[0][0], pipes[1][1], pipes[2][1]] if pipes else []
    try:
        config = _config(sandbox, process, spec, command, isolate, far)
        seals = isolate and config["owner"] is None
        joiner = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", ENTER_SOURCE],
            executable=interpreter(seals),
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            pass_fds=far,
            env=environment(seals),
            cwd="/",
            start_new_session=True,
        )
    except BaseException as e:
        for fd in (*near, *far):
            os.close(fd)
        ours.close()
        theirs.close()
        if isinstance(e, OSError):
            raise ResourceError(f"no process can be started in {process.container_id}: {e}") from e
        raise
    for fd in far:
        os.close(fd)
    theirs.close()
    try:
        pid, terminal = _hand_over(ours, config)
    except BaseException as e:
        for fd in near:
            os.close(fd)
        ours.close()  # and with it the joiner ends
        with suppress(subprocess.TimeoutExpired):
            joiner.wait(PATIENCE)
        if isinstance(e, LaunchError):
            raise explain(process.container_id, e) from e
        if isinstance(e, OSError):
            raise ResourceError(f"{process.container_id} could not be joined: {e}") from e
        raise
    if command.terminal:
        near = [terminal, os.dup(terminal)]
    for fd in near:
        os.set_blocking(fd, False)
    ours.setblocking(False)
    stderr = None if command.terminal else near[2]
    return Entered(pid=pid, control=ours, joiner=joiner, stdin=near[0], stdout=near[1], stderr=stderr)


def _config(
    sandbox: Sandbox, process: SandboxProcess, spec: SandboxSpec, command: Command, isolate: bool, streams: list[int]
) -> EnterConfig:
    group = read_group(spec.folder)
    limits: Limits = getattr(sandbox, "limits", None) or NoLimits()
    env = dict(command.env)
    if not isolate:  # as the tier itself sets them
        env |= {"HOME": f"{spec.folder}/home", "TMPDIR": os.path.join(spec.folder, "tmp")}
    return EnterConfig(
        isolate=isolate,
        owner=getattr(sandbox, "owner", None),
        candidates=[(member.pid, member.started) for member in family(process.pid)] if isolate else [],
        joins=group.joins or ([f"{group.clone_into}/cgroup.procs"] if group.clone_into else []),
        rlimits=limits_without_groups(spec, limits, own_user_namespace=isolate),
        streams=streams,
        terminal=command.terminal,
        argv=list(command.argv),
        file=command.file,
        env=env,
        cwd=command.cwd,
    )


def _hand_over(control: socket.socket, config: EnterConfig) -> tuple[int, int]:
    """Its pid, and the descriptor of its terminal (-1 without one)."""
    control.settimeout(PATIENCE)
    data = marshal.dumps(dict(config))
    with suppress(BrokenPipeError):  # one that has ended says why
        control.sendall(len(data).to_bytes(4, "little") + data)
    answer, terminal = b"", -1
    try:
        while not (answer.removeprefix(b"terminal\n").startswith(b"started ") and answer.endswith(b"\n")):
            # One byte at a time: what follows this line is for whoever waits for the program's end.
            piece, ancillary, *_ = control.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            for _level, _kind, passed in ancillary:
                terminal = array.array("i", passed[:4])[0]
            if not piece:
                raise _error(answer)
            answer += piece
        if config["terminal"] and not _is_terminal(terminal):
            raise LaunchError(errno.ENOTTY, "opening a terminal", "/dev/ptmx of the container is none")
    except BaseException:
        if terminal >= 0:
            os.close(terminal)
        raise
    return int(answer.split()[-1]), terminal


def _is_terminal(fd: int) -> bool:
    """What comes out of a sandbox may be anything; this process reads only from a character device."""
    return fd >= 0 and stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd)


def _error(answer: bytes) -> LaunchError:
    lines = answer.decode(errors="replace").partition("error\n")[2].splitlines()
    if len(lines) < 3:
        return LaunchError(0, "joining the container", "the joining program ended without a word")
    return LaunchError(int(lines[0]), lines[1], " ".join(lines[2:]))


def explain(container_id: str, error: LaunchError) -> Error:
    if error.errno == errno.ESRCH or error.step == "opening the control group":
        return NotFoundError(f"{container_id} has ended")
    if error.step.startswith(USER_STEPS) and error.errno in USER_ERRNOS:
        return InvalidError(f"{container_id} cannot do that: {error}")
    if error.step.startswith("joining the namespaces") and error.errno in (errno.EINVAL, errno.EBADF):
        return ResourceError(f"{container_id} cannot be joined: {error}. That takes Linux 5.8 or later")
    return ResourceError(f"no process could be started in {container_id}: {error}")
