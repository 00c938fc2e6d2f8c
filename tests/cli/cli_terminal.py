"""The `lorry` command as a person has it: a process of its own, with a state directory of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect

LORRY = str(Path(sys.executable).parent / "lorry")
PROGRAMS = Path(__file__).parent / "programs"
LIMIT = 60
"""Seconds; only ends a broken test."""

Result = subprocess.CompletedProcess[str]


class Terminal:
    """Runs the command with a state directory of its own."""

    def __init__(self, root: Path) -> None:
        self.state = root / "state"
        unwanted = ("LORRY_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "XDG_CONFIG_HOME")
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
        self.environ |= {
            "LORRY_STATE_DIR": str(self.state),
            "LORRY_RUNTIME_DIR": str(root / "run"),
            "LORRY_IDLE_EXIT": "120",
            "TERM": "xterm",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def __call__(self, *words: str, code: int | None = 0, stdin: str = "", **environ: str) -> Result:
        """Run it in pipes, to its end."""
        done = subprocess.run(
            [LORRY, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=PROGRAMS,
            env={**self.environ, **environ},
        )
        if code is not None:
            assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def shell(self, line: str) -> Result:
        """A line of bash in which `lorry` is ours."""
        return subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=PROGRAMS,
            env={**self.environ, "PATH": f"{Path(LORRY).parent}:{self.environ['PATH']}"},
        )

    def typed(self, *words: str, columns: int = 80, **environ: str) -> pexpect.spawn:
        """Run it on a terminal."""
        return pexpect.spawn(
            LORRY,
            list(words),
            cwd=str(PROGRAMS),
            env={**self.environ, **environ},
            dimensions=(24, columns),
            timeout=LIMIT,
            encoding="utf-8",
        )

    def stop(self) -> None:
        self("server", "stop", "--force")


def screen(output: str) -> list[str]:
    """What a terminal shows in the end. Knows the control codes that the live display uses, and fails at others."""
    rows, row, column = [""], 0, 0
    for code, char in re.findall(r"\x1b\[(\d*[AJm])|(.)", output, re.S):
        if code.endswith("A"):
            row = max(0, row - 1)
        elif code.endswith("J"):
            rows[row:] = [rows[row][:column]]
        elif char == "\r":
            column = 0
        elif char == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif char:
            assert char != "\x1b"
            rows[row] = rows[row][:column].ljust(column) + char + rows[row][column + 1 :]
            column += 1
    return [text.rstrip() for text in rows]
