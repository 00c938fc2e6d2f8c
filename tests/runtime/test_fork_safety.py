"""What a process may hold before it is forked. Each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os
from lorry.runtime.fork_safety import open_files, unsafe
before = open_files()
{work}
print(unsafe(before))
"""


def verdict(work: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work=work)], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ("", ""),
        ("import json, asyncio, concurrent.futures", ""),
        ("kept = open('/dev/null')", ""),
        ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "started 1 thread:"),
        ("import socket; s = socket.socket()", "a socket"),
        ("import asyncio; loop = asyncio.new_event_loop()", "event loop"),
        ("fd = os.eventfd(0)", "eventfd"),
    ],
)
def test_what_the_import_left_is_named(work: str, reason: str) -> None:
    found = verdict(work)
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_fork_that_hangs_is_found_and_ended() -> None:
    work = "from lorry.runtime import fork_safety; fork_safety.SELF_TEST_SECONDS = 0.2\n"
    work += "import time; print(fork_safety._passes(lambda: time.sleep(60)), fork_safety._passes(lambda: None))"
    assert verdict(work).splitlines()[0] == "False True"
