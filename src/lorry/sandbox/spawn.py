"""Running the launcher: what it is told, and what its answers mean. Blocking; callers use a thread."""

from __future__ import annotations

import marshal
import os
import select
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TypedDict

from lorry.sandbox.sealed import environment, interpreter

SOURCE = f"""
import sys
sys.path.append({os.path.dirname(os.path.dirname(os.path.abspath(__file__)))!r})
from sandbox.launcher import main
main()
"""
"""Imported, not run as a script: a script is compiled anew at each start. `sandbox` alone, without `lorry`,
whose own `__init__` is the SDK; so this folder's `__init__.py` stays empty and the launcher's imports
relative."""


class LaunchConfig(TypedDict):
    isolate: bool
    wrapper: str
    """Path of bubblewrap where that makes the sandbox, or empty."""
    owner: int | None
    """Host uid and gid that the sandbox drops to; None when the server is not root and keeps its own."""
    root: str
    """Empty host directory where the new root is put together."""
    steps: list[tuple[str, str, str, int]]
    hostname: str
    block_network: bool
    joins: list[str]
    """Files of control groups (version 1) to write oneself into."""
    clone_into: str
    """Directory of a control group (version 2) for the sandbox's first process, or empty."""
    rlimits: list[tuple[int, int]]
    outputs: tuple[str, str]
    record: str
    template: bool
    writable: bool
    """The root stays writable: an image's layer is being built."""
    build: bool
    """The program keeps its capabilities in the user namespace, see `SandboxSpec.build`."""
    ids: list[tuple[int, int, int]]
    """For a build: (first inside, first outside, how many), uids and gids alike. Empty: only `owner`."""
    argv: list[str]
    """Empty: a probe, which ends where the program would be executed."""
    env: dict[str, str]
    cwd: str


class LaunchError(Exception):
    """The launcher could not do `step`."""

    def __init__(self, errno: int, step: str, text: str) -> None:
        super().__init__(f"{step}: {text}")
        self.errno = errno
        self.step = step
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    pid: int
    pidfd: int | None
    """None where the system has none (macOS)."""


def open_pidfd(pid: int) -> int | None:
    return os.pidfd_open(pid) if sys.platform == "linux" else None


def launch(config: LaunchConfig) -> Launched:
    """Returns when the program has been executed. Raises LaunchError; then nothing of it runs any more."""
    data = marshal.dumps(dict(config))
    seals = config["isolate"] and config["owner"] is None
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SOURCE],
        executable=interpreter(seals),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(seals),
        cwd="/",
        start_new_session=True,  # a Ctrl-C at the server's terminal is not for its containers
    ) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        with suppress(BrokenPipeError):  # a launcher that has ended says why on stdout
            launcher.stdin.write(len(data).to_bytes(4, "little") + data)
            launcher.stdin.flush()
        return _hand_over(launcher.stdin, launcher.stdout)


def _hand_over(stdin: IO[bytes], stdout: IO[bytes]) -> Launched:
    first = stdout.readline()
    if not first.startswith(b"pid "):
        raise _error(first + stdout.read())
    pid = int(first.split()[1])
    # The launcher lives until it is answered, and with it, as its child, the pid: it cannot name another
    # process.
    pidfd = open_pidfd(pid)
    with suppress(BrokenPipeError):
        stdin.write(b"g")
        stdin.close()
    answer = stdout.read()
    if answer:
        if pidfd is not None:
            end_blocking(pidfd)
            os.close(pidfd)
        raise _error(answer)
    return Launched(pid=pid, pidfd=pidfd)


def _error(answer: bytes) -> LaunchError:
    before, _, report = answer.decode(errors="replace").partition("error\n")
    lines = report.splitlines()
    if len(lines) < 3:
        return LaunchError(0, "starting the sandbox's launcher", before.strip() or "it ended without a word")
    return LaunchError(int(lines[0]), lines[1], " ".join(lines[2:]))


def end_blocking(pidfd: int) -> None:
    select.select([pidfd], [], [])
    reap(pidfd)


def reap(pidfd: int) -> int | None:
    """Exit code of an ended sandbox (negative: the signal), if it is this process's child (the server is the
    subreaper of sandboxes whose launcher has ended) and nobody was faster; else None."""
    if sys.platform != "linux":
        return None
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
