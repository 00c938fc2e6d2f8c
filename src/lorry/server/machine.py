"""The machine as measured: cores, memory, disk, GPUs. Linux's /proc, with plain fallbacks elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from lorry.scheduler.inventory import Inventory, parse_nvidia_smi
from lorry.scheduler.load import MachineLoad

_MIB = 1 << 20


def take_inventory(gpu_fixture: str) -> Inventory:
    """What there is. `gpu_fixture`: a file in nvidia-smi's CSV format that stands for the machine's cards."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB
    text = Path(gpu_fixture).read_text() if gpu_fixture else _nvidia_smi()
    return Inventory(cores=float(cores), memory_mib=memory, gpus=parse_nvidia_smi(text))


def _nvidia_smi() -> str:
    """Empty where there is no driver. A hanging driver counts as none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


class LoadMeter:
    """CPU idle between two looks, memory and disk at the look."""

    def __init__(self, inventory: Inventory, state: Path) -> None:
        self._inventory = inventory
        self._state = state
        self._before = _cpu_times()
        self._idle = 1.0

    def measure(self) -> None:
        """Call about once a second: the idle fraction is that of the time since the last call."""
        now = _cpu_times()
        total = now[1] - self._before[1]
        if total > 0:
            self._idle = min(1.0, max(0.0, (now[0] - self._before[0]) / total))
        self._before = now

    def load(self) -> MachineLoad:
        disk = shutil.disk_usage(self._state)
        return MachineLoad(
            cores=self._inventory.cores,
            cpu_idle_fraction=self._idle,
            memory_free=_memory_available(),
            memory_total=self._inventory.memory_mib,
            disk_free_fraction=disk.free / max(1, disk.total),
        )


def _cpu_times() -> tuple[int, int]:
    """(idle, total) clock ticks of all CPUs since boot (proc(5), /proc/stat)."""
    try:
        with open("/proc/stat") as file:
            values = [int(value) for value in file.readline().split()[1:9]]
    except OSError:
        return (0, 0)
    return values[3] + values[4], sum(values)


def _memory_available() -> int:
    """MiB that can be used without swapping (proc(5), MemAvailable)."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) // 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB // 2


def process_started(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None if there is none of that pid (or no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])
