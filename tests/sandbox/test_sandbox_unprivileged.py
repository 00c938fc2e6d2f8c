"""The same promises for a server that is not root: the suite again, as an ordinary user without cgroups."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sandbox_box import PYTHON

USER = 65532
NEEDED = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
OURS = ("lorry.sandbox", "lorry.errors", "lorry.ids")
SUITES = (
    "test_sandbox_conformance.py",
    "test_sandbox_namespaces.py",
    "test_sandbox_seccomp.py",
    "test_sandbox_enter.py",
    "test_sandbox_sealed.py",
)
IGNORE = shutil.ignore_patterns("__pycache__")


def copy_module(name: str, path: Path) -> None:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    where = path / name.replace(".", "/")
    if spec.submodule_search_locations:
        shutil.copytree(spec.submodule_search_locations[0], where, ignore=IGNORE)
    else:
        shutil.copy(spec.origin, f"{where}.py")


@pytest.fixture
def workplace() -> Iterator[Path]:
    """A directory of that user with all the suite needs; pytest's own lie below a folder of mode 0700."""
    with tempfile.TemporaryDirectory(prefix="lorry-unprivileged-") as name:
        root = Path(name)
        (root / "path").mkdir()
        for module in (*NEEDED, *OURS):
            copy_module(module, root / "path")
        shutil.copytree(Path(__file__).parent, root / "tests", ignore=IGNORE)
        for folder, names, files in os.walk(root):
            for entry in (".", *names, *files):
                os.chown(Path(folder, entry), USER, USER)
        yield root


@pytest.mark.parametrize("suite", SUITES)
def test_every_promise_holds_for_an_ordinary_user(workplace: Path, suite: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("this run is unprivileged already")
    version = subprocess.run([PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if version.stdout.strip() != b"True":
        pytest.skip(f"{PYTHON} is older than 3.11, and this interpreter may lie where only root can read")
    done = subprocess.run(
        [
            PYTHON,
            "-W",
            "error",
            "-m",
            "pytest",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "--basetemp=tmp",
            suite,
        ],
        cwd=workplace / "tests",
        env={"PYTHONPATH": str(workplace / "path"), "HOME": str(workplace), "PATH": "/usr/bin:/bin"},
        user=USER,
        group=USER,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    # Skipped: what needs root's own mounts. Were the namespaces tier refused, half of each suite would be.
    assert counts["passed"] > 5 * counts.get("skipped", 0), done.stdout
