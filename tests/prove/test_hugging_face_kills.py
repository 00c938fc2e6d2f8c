"""Twenty kills each of a causal language model, a masked one and supervised fine-tuning, by `run.hugging_face`; and
the same schedule of kills with the checkpoints that Trainer makes by itself, whose outcome is reported.

`make prove` runs it; the dated result belongs in docs/proofs.md.
"""

from __future__ import annotations

import functools
import random
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from attempts import attempts as attempts
from attempts import digest
from attempts import torch_python as torch_python
from test_hugging_face import train as train

pytestmark = pytest.mark.prove

KILLS = 20


@dataclass
class Tally:
    """What became of the trainings that it took to place all kills."""

    calm: str
    """The digest of the weights of a training that nobody touched."""
    endings: list[str] = field(default_factory=list)
    in_saves: int = 0
    failed_loads: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        same = self.endings.count(self.calm)
        return (
            f"{KILLS} kills, {self.in_saves} of them inside a save: {same} of {len(self.endings)} trainings ended with "
            f"the weights of the calm one, {self.failed_loads} checkpoints could not be loaded, {self.seconds:.0f} s"
        )


def killed(train: Any, where: Path, kind: str, **options: Any) -> Tally:
    """Kill at moments that are spread evenly over a training; the schedule depends on the kind alone."""
    began, moments = time.monotonic(), random.Random(kind)
    calm = train(where / "calm", kind=kind, **options)
    assert calm.status == 0, calm.said
    tally, kills = Tally(digest(where / "calm")), 0
    while kills < KILLS or (where / str(len(tally.endings))).exists():
        folder = where / str(len(tally.endings))
        limit = moments.random() * calm.seconds if kills < KILLS else None
        before = half_saved(folder)
        ended = train(folder, kind=kind, kill_after=limit, **options)
        tally.failed_loads += len(re.findall("^cannot load", ended.said, re.MULTILINE))
        if ended.status == -signal.SIGKILL:
            kills += 1
            folder.mkdir(exist_ok=True)
            tally.in_saves += bool(half_saved(folder) - before)
        else:
            assert ended.status == 0, ended.said
            tally.endings.append(digest(folder))
    tally.seconds = time.monotonic() - began
    return tally


def half_saved(folder: Path) -> set[tuple[Path, int]]:
    """What a kill while a checkpoint was written has left, by whichever of the two, and when."""
    left = [*(folder / "incoming").glob("*"), *(folder / "output").glob("checkpoint-*")]
    return {(path, path.stat().st_mtime_ns) for path in left if not (path / "trainer_state.json").exists()}


@pytest.mark.parametrize("kind", ["causal", "masked", "sft"])
def test_twenty_kills(train: Any, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours = killed(train, tmp_path / "ours", kind, every=2)
    theirs = killed(functools.partial(train, on_its_own=True), tmp_path / "theirs", kind)
    with capsys.disabled():
        print(f"\n{kind}, run.hugging_face: {ours}\n{kind}, Trainer's own checkpoints: {theirs}")
    assert set(ours.endings) == {ours.calm}
    assert not ours.failed_loads
