"""A server per test session for the tests of the command line, and one per test where it is ended."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_terminal import Terminal


@pytest.fixture(scope="session")
def _session_terminal() -> Iterator[Terminal]:
    root = Path(tempfile.mkdtemp(prefix="lorry-cli-"))
    terminal = Terminal(root)
    yield terminal
    terminal.stop()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def lorry(_session_terminal: Terminal) -> Terminal:
    """On a server that the whole session shares."""
    return _session_terminal


@pytest.fixture
def fresh() -> Iterator[Terminal]:
    """On a machine where Lorry never ran."""
    root = Path(tempfile.mkdtemp(prefix="lorry-cli-"))
    terminal = Terminal(root)
    yield terminal
    terminal.stop()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Write a program and give its path."""

    def write(text: str, name: str = "program.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write
