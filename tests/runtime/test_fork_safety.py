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


TORCH = """
import sys, types
made = []

class Tensor:
    def __matmul__(self, other): return self
    def sum(self): return self
    def exp(self): return self
    def item(self): return 0.0

def ones(shape, *, device, dtype):
    made.append((device, dtype))
    return Tensor()

torch = sys.modules["torch"] = types.SimpleNamespace(
    ones=ones,
    float32="float32",
    set_num_threads=lambda n: None,
    default_generator=types.SimpleNamespace(seed=lambda: 1),
    backends=types.SimpleNamespace(cuda=types.SimpleNamespace(is_built=lambda: False)),
)
from lorry.runtime.fork_safety import _two_threads, first_computations, thread_setters
first_computations(thread_setters())
_two_threads(torch)
print(set(made) == {("cpu", "float32")} and len(made) >= 3)
"""


def test_first_computations_are_on_the_cpu_whatever_the_module_s_defaults_are() -> None:
    """A stand-in, which has no other way to make a tensor: a default device of a GPU would initialise it here."""
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"
