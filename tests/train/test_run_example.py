"""examples/resume.py, in a process of its own: killed, started again, the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import lorry

EXAMPLE = Path(__file__).parents[2] / "examples" / "resume.py"
ENVIRON = {**os.environ, "PYTHONPATH": str(Path(lorry.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def start(python: Path, folder: Path) -> subprocess.Popen[str]:
    environ = {**ENVIRON, "LORRY_RUN_DIR": str(folder)}
    return subprocess.Popen([python, EXAMPLE], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)


def test_the_example_is_killed_and_ends_with_the_same_weights(torch_python: Path, tmp_path: Path) -> None:
    calm = start(torch_python, tmp_path / "calm")
    rough = start(torch_python, tmp_path / "rough")
    assert rough.stdout is not None
    for line in rough.stdout:
        if line.startswith("step 3,200"):
            rough.kill()
    assert rough.wait() == -signal.SIGKILL
    rough.stdout.close()
    again, _ = start(torch_python, tmp_path / "rough").communicate(timeout=60)
    calm_said, _ = calm.communicate(timeout=60)
    assert calm.returncode == 0, calm_said
    assert not again.startswith("0 of"), again
    assert again.splitlines()[-1] == calm_said.splitlines()[-1]
    assert again.splitlines()[-1].startswith("weights ")
