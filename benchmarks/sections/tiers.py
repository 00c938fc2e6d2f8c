"""What each sandbox tier adds to the start of a plain process, as root and as an ordinary user."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import Budget
from rounds import CONTESTANTS, Results, alternate, say

from sections.options import Options

TITLE = "Start of a sandbox"
START = "start and end of /usr/bin/true"
BUDGETS: tuple[Budget, ...] = ()
USER = 65532
PYTHON = "/usr/bin/python3"
OURS = ("lorry.sandbox", "lorry.errors", "lorry.ids")
SCRIPT = CONTESTANTS / "tier_starts.py"


def run(options: Options, results: Results) -> None:
    turn = 0
    count = options.count(20, 2)
    with tempfile.TemporaryDirectory(prefix="lorry-bench-user-") as name:
        others = _copied(Path(name)) if os.geteuid() == 0 else None

        def each() -> None:
            nonlocal turn
            turn += 1
            found = json.loads(subprocess.run([sys.executable, SCRIPT, str(count)], stdout=subprocess.PIPE).stdout)
            if others:
                found |= _as_user(others, count, results)
            for title, samples in found.items():
                results.of(START, title, "ms").add(turn, {"samples": samples})

        alternate(options.rounds, each, START)


def _copied(folder: Path) -> Path:
    """What the script needs, for a user who may not read where this environment lies."""
    for name in OURS:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        where = folder / name.replace(".", "/")
        if spec.submodule_search_locations:
            shutil.copytree(spec.submodule_search_locations[0], where, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(spec.origin, f"{where}.py")
    shutil.copy(SCRIPT, folder)
    for parent, folders, files in os.walk(folder):
        for entry in (".", *folders, *files):
            os.chown(os.path.join(parent, entry), USER, USER)
    return folder


def _as_user(folder: Path, count: int, results: Results) -> dict[str, list[float]]:
    done = subprocess.run(
        [PYTHON, folder / SCRIPT.name, str(count)],
        env={"PYTHONPATH": str(folder), "HOME": str(folder), "PATH": "/usr/bin:/bin"},
        cwd=folder,
        user=USER,
        group=USER,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        reason = f"as an ordinary user: {done.stderr.strip().splitlines()[-1]}"
        if reason not in results.out:
            results.out.append(reason)
            say(f"  ! {reason}")
        return {}
    return dict(json.loads(done.stdout))
