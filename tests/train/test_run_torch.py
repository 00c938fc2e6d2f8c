"""Torch's state: every dtype, odd shapes, ties, optimizers, schedulers. The cases are in programs/torch_state.py."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import lorry

PROGRAM = Path(__file__).parent / "programs" / "torch_state.py"


def test_torch_s_state_comes_back_bit_by_bit(torch_python: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(lorry.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([torch_python, PROGRAM, "all"], capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = re.findall(r"^def (\w+)\(folder\):", PROGRAM.read_text(), re.MULTILINE)
    assert [line.split()[0] for line in done.stdout.splitlines()] == cases
