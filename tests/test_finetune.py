"""The main example, end to end: an image with torch, a Volume with text, training, and text from the trained model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from server_home import ServerHome

ROOT = Path(__file__).parents[1]
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
"""Public-domain text, used where it lies beside the checkout; otherwise Python's standard library is."""
LORRY = Path(sys.executable).parent / "lorry"


def lorry(*arguments: str) -> str:
    done = subprocess.run([LORRY, "run", *arguments], capture_output=True, text=True, timeout=540, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("server")
def test_finetune_learns_and_generate_writes_words_of_the_corpus(shared_home: ServerHome) -> None:
    data = ["--data", str(SHAKESPEARE)] if SHAKESPEARE.exists() else []
    report = json.loads(re.search(r"^\{.*\}$", lorry("examples/finetune.py", *data), re.MULTILINE).group())  # type: ignore[union-attr]
    assert report["last50"] <= 0.75 * report["first50"]
    text = lorry("examples/finetune.py::generate", "--prompt", "To be")
    assert len(text) >= 200
    if data:
        known = set(words(SHAKESPEARE.read_text()))
        written = words(text)
        assert sum(word in known for word in written) / len(written) >= 0.6


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z']+", text.lower())
