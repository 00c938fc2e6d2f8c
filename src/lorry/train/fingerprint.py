"""What must be equal for two attempts to compute the same bits: versions, processor, threads, devices."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from pathlib import Path

import lorry

_VECTORS = ("avx512f", "avx2", "avx", "asimd")
"""Flags of /proc/cpuinfo, best first: they choose the kernels."""


def fingerprint() -> dict[str, str]:
    """As it is now: what is imported later is not in it."""
    model, vector = _processor()
    found = {"lorry": lorry.__version__, "python": platform.python_version(), "cpu": model, "instructions": vector}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        found["numpy"] = numpy.__version__
    if torch is None:
        return {**found, "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}
    found["torch"] = str(torch.__version__)
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    found["threads"] = str(torch.get_num_threads())
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found["devices"] = ", ".join(torch.cuda.get_device_name(device) for device in range(count)) or "none"
    return found


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What differs, as "torch 2.12.0 → 2.13.0". Something that only one of the two knows is no change."""
    return [f"{name} {before[name]} → {now[name]}" for name in sorted(before.keys() & now) if before[name] != now[name]]


def warn_of_changes(before: dict[str, str], *, stacklevel: int) -> None:
    different = changes(before, fingerprint())
    if different:
        warnings.warn(
            "The checkpoint was made in another environment, so the result may differ in its last bits: "
            + "; ".join(different),
            stacklevel=stacklevel,
        )


def _processor() -> tuple[str, str]:
    """The processor's name and its widest vectors."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), platform.machine()
    fields: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    vector = next((name for name in _VECTORS if name in flags), "none")
    return fields.get("model name") or platform.machine(), vector
