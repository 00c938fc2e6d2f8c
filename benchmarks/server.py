"""A Lorry server of the benchmark's own: its state on a real disk, its worker's memory read from /proc."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from setup import HERE

LOGS = HERE / "results" / "logs"
STOP_LIMIT = 15.0


def base_folder() -> Path:
    """Below $LORRY_STATE_DIR if it is set; else /var/tmp, a disk on most machines (/tmp may be memory)."""
    return Path(os.environ.get("LORRY_STATE_DIR", "/var/tmp/lorry-benchmark"))


def file_system(folder: Path) -> str:
    """Its type: on tmpfs the price of a journal is not what users pay."""
    folder.mkdir(parents=True, exist_ok=True)
    found = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@contextlib.contextmanager
def fresh_server() -> Iterator[None]:
    """An empty state folder for the clients started inside; server and state are gone after it."""
    base = base_folder()
    base.mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(prefix="s-", dir=base))
    runtime = Path(tempfile.mkdtemp(prefix="lb-", dir="/tmp"))  # short: socket paths have 107 bytes
    before = {name: os.environ.get(name) for name in ("LORRY_STATE_DIR", "LORRY_RUNTIME_DIR")}
    os.environ.update(LORRY_STATE_DIR=str(state), LORRY_RUNTIME_DIR=str(runtime))
    try:
        yield
    finally:
        stop()
        LOGS.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            shutil.copy(state / "server.log", LOGS / "server.log")  # of the last one: it says why something hung
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(runtime, ignore_errors=True)


def keeper() -> int | None:
    """The keeper's pid: the lock file of the state folder holds it. None if no server runs."""
    lock = Path(os.environ["LORRY_STATE_DIR"]) / "lock"
    try:
        pid = int(lock.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def worker() -> int:
    """The worker's pid: the child of the keeper that is the server itself, not an orphaned container."""
    pid = keeper()
    assert pid is not None, "no server runs"
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return min(map(int, children))


def stop() -> None:
    """End the server of the current state folder, if there is one."""
    pid = keeper()
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_LIMIT
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def reset_peak(pid: int) -> None:
    """The kernel forgets the process's peak; see proc(5), clear_refs."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory(pid: int) -> tuple[float, float]:
    """(resident now, peak since reset_peak), MiB."""
    sizes = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            sizes[name] = int(rest.split()[0]) / 1024
    return sizes["VmRSS"], sizes["VmHWM"]
