"""Every example runs as its first lines say. `finetune.py` has a test of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LORRY = Path(sys.executable).parent / "lorry"
SHOWN = {
    "hello.py": ["hello, world, from your machine's own Python", "hello, world, from a container"],
    "map.py": [
        "sum of squares: 333283335000",
        "first of endlessly many: 0",
        "with an error in its place: [1.0, 0.5, ZeroDivisionError('division by zero'), 0.25]",
    ],
    "generators.py": [*(rf"{left} after \d+\.\d s" for left in range(5, 0, -1)), "done"],
    "class_with_state.py": [
        "en: 4",
        "en: 8",
        "de: 3",
        "loading en",
        "loading de",
        r"en knew 8 words",
        "de knew 3 words",
    ],
    "async_functions.py": [
        "page 0 to page 19",
        "one after the other it would take 10.0 s; it took less than 2 s: True",
    ],
}
"""Lines that stdout has; what containers print may come between those of the program."""
OWN_TEST = {"finetune.py", "finetune_simplest.py", "resume.py", "bert_on_slices.py", "pipeline.py"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(LORRY), "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("name", SHOWN)
def test_the_example_prints_what_it_should(name: str) -> None:
    done = run(f"examples/{name}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for wanted in SHOWN[name]:
        assert any(line == wanted or re.fullmatch(wanted, line) for line in lines), done.stdout
    assert len(lines) == len(SHOWN[name])


@pytest.mark.usefixtures("server")
def test_an_example_takes_its_flags() -> None:
    assert "hello, Ada, from a container" in run("examples/hello.py", "--name", "Ada").stdout


def test_every_example_is_run_by_a_test() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {*SHOWN, *OWN_TEST}
