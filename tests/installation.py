"""A second installation of Lorry in a virtual environment of its own, made without any download."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import typer

import lorry


class Installation:
    def __init__(self, folder: Path, *, version: str = lorry.__version__, protocol: int | None = None) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
        packages = next((folder / "lib").glob("python3*")) / "site-packages"
        # What Lorry depends on comes from this environment; Lorry itself is a copy, found before.
        (packages / "dependencies.pth").write_text(f"{Path(typer.__file__).parent.parent}\n")
        beside = Path(sys.executable).parent
        (folder / "bin" / "uv").symlink_to(shutil.which("uv", path=f"{beside}:{os.environ['PATH']}") or "uv")
        copy = packages / "lorry"
        shutil.copytree(Path(lorry.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        _replace(copy / "__init__.py", r'__version__ = ".*"', f'__version__ = "{version}"')
        if protocol is not None:
            _replace(copy / "wire" / "frames.py", r"PROTOCOL_VERSION = \d+", f"PROTOCOL_VERSION = {protocol}")

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def lorry(self, *words: str) -> str:
        """What a command prints that works."""
        command = [self.python, "-m", "lorry.cli.main", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def delete(self) -> None:
        shutil.rmtree(self.folder)


def _replace(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, path.read_text())
    assert count == 1, f"{pattern} is {count} times in {path}"
    path.write_text(changed)
