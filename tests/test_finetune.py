"""The examples that train, end to end: an image with torch, Volumes with text and models, runs in slices."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from server_home import ServerHome

pytestmark = pytest.mark.xdist_group("torch image")  # built once

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
    again = lorry("examples/finetune.py", *data, "--model", report["path"], "--lora", "--steps", "10")
    assert "loading /models/" in again
    text = lorry("examples/finetune.py::generate", "--prompt", "To be")
    assert len(text) >= 200
    if data:
        known = set(words(SHAKESPEARE.read_text()))
        written = words(text)
        assert sum(word in known for word in written) / len(written) >= 0.6


@pytest.mark.usefixtures("server")
def test_the_loop_of_every_tutorial_runs_as_it_is() -> None:
    assert "line 100  loss" in lorry("examples/finetune_simplest.py", "--lines", "101")


@pytest.mark.usefixtures("server")
def test_bert_in_slices_ends_with_the_weights_of_a_training_without() -> None:
    said = lorry("examples/bert_on_slices.py", "--slice", "10", "--steps", "200")
    assert re.search(r"^weights: .*, equal$", said, re.MULTILINE)
    assert int(re.search(r"^slices of 10 s: (\d+);", said, re.MULTILINE).group(1)) >= 2  # type: ignore[union-attr]


@pytest.mark.usefixtures("server")
def test_the_pipeline_prepares_trains_and_evaluates() -> None:
    said = lorry("examples/pipeline.py", "--files", "12", "--steps", "300")
    bits = float(re.search(r"^([\d.]+) bits per byte", said, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert bits < 5
    run = re.search(r"lorry runs show (ru-\w+)", said).group(1)  # type: ignore[union-attr]
    shown = subprocess.run([LORRY, "runs", "show", run], capture_output=True, text=True, timeout=30)
    assert "300/300" in shown.stdout


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z']+", text.lower())
