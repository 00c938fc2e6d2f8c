"""Training in slices and without, through the public SDK: examples/bert_on_slices.py is the training."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import turns

import lorry

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import bert_on_slices as bert

CORPUS = "/data/corpus.txt"


def uploaded() -> None:
    text = "".join(path.read_text("utf-8", "replace") for path in sorted(Path(tempfile.__file__).parent.glob("*.py")))
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, "corpus.txt")
        local.write_text(text, "utf-8")
        with bert.data_volume.batch_upload(force=True) as batch:
            batch.put_file(local, "/corpus.txt")


def train(seconds: float, steps: int) -> dict[str, object]:
    """Seconds of so many steps in slices of `seconds`, and what the run's log says of them."""
    began = turns.now()
    report = bert.train.with_options(timeout=seconds, cpu=1).remote(CORPUS, steps)
    return {"value": turns.now() - began, **report}


def step(n: int) -> dict[str, object]:
    """Microseconds of run.step() with one metric when nothing is due, the mean of n."""
    with tempfile.TemporaryDirectory() as folder, lorry.run(folder, every="1h") as run:
        run.track(state={})
        run.restore()
        for _ in range(n // 10):
            run.step(loss=1.0)
        began = turns.now()
        for _ in range(n):
            run.step(loss=1.0)
        return {"value": (turns.now() - began) / n * 1e6}


if __name__ == "__main__":
    with bert.app.run():
        uploaded()
        bert.train.with_options(timeout=3600, cpu=1).remote(CORPUS, 5)  # the image is built, the template is warm
        turns.serve({"train": train, "step": step})
