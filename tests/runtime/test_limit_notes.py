"""Which errors of the system get a sentence about the container's limits, and which are left alone."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lorry.runtime import limit_notes
from lorry.runtime.limit_notes import annotate


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_PIDS_LIMIT", "400")


def notes(problem: BaseException) -> list[str]:
    annotate(problem)
    return list(getattr(problem, "__notes__", ()))


def test_a_refused_fork_names_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(BlockingIOError) as caught:
        os.fork()
    assert "400 processes and threads" in notes(caught.value)[0]
    assert len(notes(caught.value)) == 1  # said again, it is not said twice


def test_so_do_a_refused_subprocess_and_a_refused_thread() -> None:
    code = (
        "import os, resource, subprocess, sys, traceback\n"
        "from lorry.runtime.limit_notes import annotate\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
        "if os.getuid() == 0: os.setuid(65533)\n"
        "try: subprocess.run([sys.executable, '-V'])\n"
        "except OSError as e: annotate(e); print(e.__notes__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "400 processes and threads" in done.stdout, done.stderr
    assert "400 processes" in notes(RuntimeError("can't start new thread"))[0]


def test_a_socket_that_would_block_is_no_such_case() -> None:
    left, right = socket.socketpair()
    left.setblocking(False)
    with left, right, pytest.raises(BlockingIOError) as caught:
        left.recv(1)
    assert notes(caught.value) == []


@pytest.mark.parametrize(("full", "words"), [("/dev/shm", "/dev/shm is full. It has 64 MiB"), ("/tmp", "lorry df")])
def test_no_space_says_where(monkeypatch: pytest.MonkeyPatch, full: str, words: str) -> None:
    def statvfs(path: str) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=0 if path == full else 10_000, f_frsize=4096, f_blocks=16384)

    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(limit_notes.os, "statvfs", statvfs)
    assert words in notes(OSError(errno.ENOSPC, "No space left on device"))[0]


def test_memory_is_named_where_a_process_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notes(MemoryError()) == []
    monkeypatch.setattr(limit_notes.resource, "getrlimit", lambda _which: (256 << 20, 256 << 20))
    assert "limit of this container is 256 MiB" in notes(MemoryError())[0]


def test_a_thread_that_finds_no_memory_for_its_stack_is_told_about_the_memory() -> None:
    """Python's words are the same as for too many threads."""
    code = (
        "import os, resource, threading\n"
        "from lorry.runtime.limit_notes import annotate\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (96 << 20, 96 << 20))\n"
        "ended = threading.Event()\n"
        "try:\n"
        "    while True: threading.Thread(target=ended.wait, daemon=True).start()\n"
        "except RuntimeError as e: annotate(e); print(e, e.__notes__, flush=True)\n"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "can't start new thread" in done.stdout, done.stderr
    assert "limit of this container is 96 MiB per process" in done.stdout


def test_what_cannot_be_explained_or_annotated_is_left_alone() -> None:
    class Odd(OSError):
        def add_note(self, _note: str) -> None:
            raise ValueError

    assert notes(ValueError("no")) == []
    annotate(Odd(errno.ENOSPC, "full"))
