"""Whole commands, timed from outside."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rounds import CONTESTANTS, OutError, environ

LIMIT = 120.0


def wall(command: Sequence[str | Path], expect: str = "") -> float:
    """Milliseconds of one run. OutError if it fails or does not print `expect`."""
    began = time.perf_counter()
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environ(),
            cwd=CONTESTANTS,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OutError(f"it took more than {LIMIT:g} s") from None
    seconds = time.perf_counter() - began
    if ended.returncode or expect not in ended.stdout:
        tail = (ended.stderr.strip() or ended.stdout.strip() or "no output").splitlines()[-1]
        raise OutError(f"exit code {ended.returncode}: {tail}")
    return seconds * 1e3
