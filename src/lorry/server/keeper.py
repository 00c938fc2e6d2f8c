"""The keeper: holds the lock and the listening sockets, starts the worker and restarts it.

Standard library only and nothing of Lorry imported, so that it outlives an upgrade of the package and a broken
worker. It is the subreaper of everything the worker starts: containers of a dead worker become its children.

Usage: python -I -S keeper.py STATE_DIR RUNTIME_DIR WORKER_COMMAND...
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time

RESTART_MAX = 5.0
HEALTHY = 2.0
"""Seconds after which a worker counts as one that works."""
MAX_FAILURES = 20
"""Workers that may die young one after the other; then the keeper gives up, and the next client starts afresh."""
HANDOVER = 5.0
"""Seconds that a keeper waits for the lock of one that is ending. Too short, and its client waits for nobody."""
EXIT_FINISHED = 0
"""A worker that ends with 0 (idle, or told to stop) is not started again; nor is one that ends with 78."""
EXIT_CONFIGURATION = 78
PR_SET_CHILD_SUBREAPER = 36


def lock(state: str) -> bool:
    """Take the state directory for this keeper's life. False if another has it."""
    os.makedirs(state, mode=0o700, exist_ok=True)
    handle = os.open(os.path.join(state, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return True


def lock_or_leave(state: str, path: str) -> bool:
    """As `lock`, but one whose socket at `path` is gone ends, or begins, in this moment: that is waited for."""
    deadline = time.monotonic() + HANDOVER
    while not lock(state):
        if os.path.lexists(path) or time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def private_folder(path: str, mode: int) -> None:
    """Make it, or refuse one that somebody else owns: /tmp is shared."""
    os.makedirs(path, mode=mode, exist_ok=True)
    if os.stat(path).st_uid != os.getuid():
        sys.exit(f"{path} belongs to another user; set LORRY_RUNTIME_DIR")
    os.chmod(path, mode)


def listen(path: str, mode: int) -> socket.socket:
    """A listening socket at `path`. Connections wait in its backlog while the worker is away."""
    if os.path.lexists(path):
        os.unlink(path)  # we hold the lock: nobody else listens here
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    os.chmod(path, mode)
    listener.listen(4096)
    return listener


def start(command: list[str], listeners: list[socket.socket]) -> subprocess.Popen[bytes]:
    numbers = [listener.fileno() for listener in listeners]
    environ = {**os.environ, "LORRY_LISTEN": ",".join(map(str, numbers)), "LORRY_KEEPER": str(os.getpid())}
    return subprocess.Popen(command, pass_fds=numbers, stdin=subprocess.DEVNULL, env=environ)


def wait_for(worker: subprocess.Popen[bytes]) -> int:
    """The worker's exit code; orphaned sandboxes that end meanwhile are reaped."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == worker.pid:
            worker.returncode = os.waitstatus_to_exitcode(status)
            return worker.returncode


def reap_rest() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main(state: str, runtime: str, command: list[str]) -> int:
    if not lock_or_leave(state, os.path.join(runtime, "s")):
        return EXIT_FINISHED
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    inner = os.path.join(runtime, "inner")
    try:
        os.makedirs(os.path.dirname(runtime), mode=0o700, exist_ok=True)
        private_folder(runtime, 0o700)
        private_folder(inner, 0o755)
        # The inner socket first: a client that can connect finds a server that can run containers.
        listeners = [listen(os.path.join(inner, "s"), 0o666), listen(os.path.join(runtime, "s"), 0o600)]
    except OSError as refused:
        sys.exit(f"no sockets can be made in {runtime}: {refused.strerror}; set LORRY_RUNTIME_DIR to a folder of yours")
    stopping = False
    worker: subprocess.Popen[bytes] | None = None

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        if worker is not None and worker.returncode is None:
            # Not worker.terminate(): that waits for the child first, and would take its end away from `wait_for`.
            os.kill(worker.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the client
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pause, failures = 0.0, 0
    while not stopping and failures < MAX_FAILURES:
        began = time.monotonic()
        try:
            worker = start(command, listeners)
        except OSError as gone:  # the environment that it was installed in was deleted or moved
            print(
                f"cannot start {command[0]}: {gone}; the server ends. Run `lorry` from where it is now", file=sys.stderr
            )
            break
        if stopping:  # the signal came while it was being started
            worker.terminate()
        code = wait_for(worker)
        if code in (EXIT_FINISHED, EXIT_CONFIGURATION):
            break
        print(f"worker {worker.pid} ended with {code}; starting it again", file=sys.stderr, flush=True)
        lived = time.monotonic() - began > HEALTHY
        failures = 0 if lived else failures + 1
        pause = 0.0 if lived else min(RESTART_MAX, pause * 2 or 0.02)
        resume = time.monotonic() + pause
        while not stopping and time.monotonic() < resume:
            time.sleep(0.02)  # a signal does not cut a sleep short
    for listener in listeners:
        os.unlink(listener.getsockname())
    reap_rest()
    return EXIT_CONFIGURATION if worker is not None and worker.returncode == EXIT_CONFIGURATION else EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
