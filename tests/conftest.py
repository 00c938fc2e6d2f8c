"""One server per test process, with a state directory of its own; tests that kill it start their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_home import PROGRAMS, ServerHome, entered


@pytest.fixture(scope="session")
def shared_home() -> Iterator[ServerHome]:
    root = Path(tempfile.mkdtemp(prefix="lorry-test-"))
    home = ServerHome(root)
    yield home
    home.stop()
    shutil.rmtree(root, ignore_errors=True)


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Proofs run only when asked for: `-m prove`."""
    if not config.getoption("-m"):
        proofs = [item for item in items if item.get_closest_marker("prove")]
        config.hook.pytest_deselected(items=proofs)
        items[:] = [item for item in items if item not in proofs]
