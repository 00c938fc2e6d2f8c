"""What must hold before a process may be forked, and what a fork must do first. Measured: docs/cold-starts.md."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

THREAD_END_SECONDS = 0.2
SELF_TEST_SECONDS = 3.0
"""A matrix product of two threads takes milliseconds, or hangs for ever."""
_UNSAFE_FILES = {
    "anon_inode:[eventpoll]": "it has an event loop",
    "socket:": "it holds a network connection or a socket",
    "anon_inode:[eventfd]": "it holds an eventfd, as libraries with threads of their own do",
    "/dev/nvidia": "it uses a GPU already",
}
_OPENBLAS = (
    "openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "scipy_openblas_set_num_threads64_",
)


def open_files() -> set[tuple[str, str]]:
    """(descriptor, what it is), as /proc/self/fd has them."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own descriptor
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


def unsafe(files_before: set[tuple[str, str]]) -> str:
    """Why this process must not be forked, after the user's import; empty if it may be. `files_before`: `open_files()`
    before the import."""
    threads = _threads_left()
    if threads > 1:
        return f"its import started {threads - 1} thread{'s' if threads > 2 else ''}: a fork would not have them"
    targets = [target for _, target in open_files() - files_before]
    for prefix, reason in _UNSAFE_FILES.items():
        if any(target.startswith(prefix) for target in targets):
            return f"after its import {reason}: forks would share it"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "its import initialised CUDA, which does not survive a fork"
    return "" if torch is None or _passes(lambda: _two_threads(torch)) else _HANGS


def _threads_left() -> int:
    """A thread that was joined takes a moment more to end: Python's `join` returns before the system's would."""
    deadline = time.monotonic() + THREAD_END_SECONDS
    while (threads := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    return threads


_HANGS = (
    "a fork of it hangs in a computation of two threads: its import ran one before (OpenMP's threads do not survive "
    "a fork). Move the computation into @enter() or into the function"
)


def _two_threads(torch: Any) -> None:
    torch.set_num_threads(2)
    square = _ones(torch, 256, 256)
    (square @ square).sum()
    _ones(torch, 200_000).exp().sum()


def _ones(torch: Any, *shape: int) -> Any:
    """On the CPU, whatever the module has made the default: a tensor on a GPU would initialise CUDA."""
    return torch.ones(shape, device="cpu", dtype=torch.float32)


def _passes(work: Callable[[], Any]) -> bool:
    """Whether a fork of this process can do that."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    handle = os.pidfd_open(pid)
    ended = bool(select.select([handle], [], [], SELF_TEST_SECONDS)[0])
    os.close(handle)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return ended


def thread_setters() -> list[Callable[[int], Any]]:
    """How to tell the numeric libraries that are loaded how many threads to use. Looked up before the fork."""
    setters: list[Callable[[int], Any]] = []
    torch = sys.modules.get("torch")
    if torch is not None:
        setters.append(torch.set_num_threads)
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "openblas" in line}
    for path in paths:
        library = ctypes.CDLL(path)
        setters += [getattr(library, name) for name in _OPENBLAS if hasattr(library, name)]
    return setters


def first_computations(setters: Iterable[Callable[[int], Any]]) -> None:
    """On one thread, what the libraries do once in a process: 5 ms at the first number of threads, 20 at the first
    product. Without it each fork would do it."""
    for setter in setters:
        setter(1)
    if "torch" in sys.modules:
        torch: Any = sys.modules["torch"]
        _reseed(torch)
        (_ones(torch, 2, 2) @ _ones(torch, 2, 2)).sum().item()


def after_fork(setters: Iterable[Callable[[int], Any]], threads: int) -> None:
    """As many threads as the container has cores, and random numbers of its own, as CPython does it for `random`: a
    seed that the module set at its import would give every container the same ones."""
    for setter in setters:
        setter(threads)
    if "numpy.random" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        _reseed(sys.modules["torch"])


def _reseed(torch: Any) -> None:
    """As `torch.seed()`, which without CUDA too notes the stack for it: up to 4 ms."""
    seed = torch.default_generator.seed()
    if torch.backends.cuda.is_built():
        torch.cuda.manual_seed_all(seed)
