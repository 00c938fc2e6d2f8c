"""One hundred kills of plain PyTorch training: 60 at random moments, 40 at named points.

`make prove` runs it; the dated result belongs in docs/proofs.md.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from attempts import Attempts
from attempts import attempts as attempts
from attempts import torch_python as torch_python
from test_run_kills import POINTS, kill_at, kill_at_random
from test_run_kills import undisturbed as undisturbed

pytestmark = pytest.mark.prove


@pytest.mark.parametrize("workers", [0, 2])
def test_sixty_kills_at_random_moments(
    attempts: Attempts,
    undisturbed: str,
    tmp_path: Path,
    workers: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trainings = kill_at_random(attempts, tmp_path, undisturbed, kills=60, seed="proof", workers=workers)
    with capsys.disabled():
        print(f"\n{workers} workers: 60 kills at random moments, {trainings} trainings, all with the same weights")


def test_forty_kills_at_named_points(
    attempts: Attempts, undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passages = random.Random("proof")
    for number in range(40):
        point = POINTS[number % len(POINTS)]
        workers = 2 if number % 3 == 0 else 0
        passage = passages.randint(1, 7)
        assert kill_at(attempts, tmp_path / str(number), point, passage, workers=workers) == undisturbed
    with capsys.disabled():
        print(f"\n40 kills at {len(POINTS)} named points, all with the same weights")
