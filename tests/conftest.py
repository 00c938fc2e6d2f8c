"""One server per test process, with a state directory of its own; tests that kill it start their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "e2e" / "programs"
if str(PROGRAMS) not in sys.path:
    sys.path.insert(0, str(PROGRAMS))


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
        if keeper is None or not _is_keeper(keeper):
            return
        os.kill(keeper, signal.SIGTERM)
        wait_until(lambda: not _is_keeper(keeper), 20)


def _is_keeper(pid: int) -> bool:
    try:
        return b"keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that must come. The bound only ends a broken test."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def shared_home() -> Iterator[ServerHome]:
    root = Path(tempfile.mkdtemp(prefix="lorry-test-"))
    home = ServerHome(root)
    yield home
    home.stop()
    shutil.rmtree(root, ignore_errors=True)


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


@pytest.fixture
def server(shared_home: ServerHome) -> Iterator[ServerHome]:
    """The shared server. Tests must leave it as they found it."""
    with entered(shared_home):
        yield shared_home


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHome]:
    """A server that the test may kill. Its image environment is built afresh: 0.2 s."""
    root = Path(tempfile.mkdtemp(prefix="lorry-own-"))
    home = ServerHome(root)
    with entered(home):
        yield home
    home.stop()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def run_program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one of tests/e2e/programs in a process of its own."""

    def run(name: str, *arguments: str, timeout: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PROGRAMS / name), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environ},
        )

    return run
