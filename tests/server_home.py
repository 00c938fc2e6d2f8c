"""A server for tests: where it lives, and what a test may do to it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lorry.sandbox.records import files_of

PROGRAMS = Path(__file__).parent / "e2e" / "programs"


class ServerHome:
    """A state and a runtime directory, and what a test may do to the server that lives in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.environ = {
            "LORRY_STATE_DIR": str(self.state),
            "LORRY_RUNTIME_DIR": str(root / "run"),
            "LORRY_IDLE_EXIT": "120",
        }

    @property
    def log(self) -> str:
        path = self.state / "server.log"
        return path.read_text() if path.exists() else ""

    def keeper_pid(self) -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.state / "lock").read_text())
        return None

    def worker_pid(self) -> int:
        """The worker that answers now."""
        keeper = self.keeper_pid()
        assert keeper is not None
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        for child in children:
            if b"lorry.server.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise AssertionError("no worker")

    def stop(self) -> None:
        """End everything, without asking."""
        keeper = self.keeper_pid()
        if keeper is not None and _runs(keeper, b"keeper.py"):
            os.kill(keeper, signal.SIGTERM)
            wait_until(lambda: not _runs(keeper, b"keeper.py"), 20)
        worker = self.last_worker_pid()
        if worker is not None and _runs(worker, b"lorry.server.worker"):  # its keeper was killed, and it lives on
            os.kill(worker, signal.SIGTERM)
            wait_until(lambda: not _runs(worker, b"lorry.server.worker"), 20)

    def last_worker_pid(self) -> int | None:
        """The worker that was started last, whether or not it and its keeper still live."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(json.loads((self.state / "server.json").read_text())["pid"])
        return None


def _runs(pid: int, program: bytes) -> bool:
    try:
        return program in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def kill_and_wait(pid: int) -> None:
    """SIGKILL, and back when it is dead."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], 20)[0], f"{pid} outlives SIGKILL"
    finally:
        os.close(handle)


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that must come. The bound only ends a broken test."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


@contextlib.contextmanager
def entered(home: ServerHome) -> Iterator[ServerHome]:
    """This process's SDK speaks to that server."""
    from lorry.sdk import channel

    before = {key: os.environ.get(key) for key in home.environ}
    os.environ.update(home.environ)
    channel.current().close()
    try:
        yield home
    finally:
        channel.current().close()
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def processes_of(folder: Path) -> list[int]:
    """Host pids whose stdout or stderr is this container's, ascending."""
    try:
        wanted = [Path(files_of(str(folder)), name).stat() for name in ("out", "err")]
    except OSError:
        return []
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        for number in (1, 2):
            try:
                theirs = os.stat(f"/proc/{entry}/fd/{number}")
            except OSError:
                continue
            if any(os.path.samestat(theirs, ours) for ours in wanted):
                found.append(int(entry))
                break
    return sorted(found)
