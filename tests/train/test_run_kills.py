"""Training is killed with SIGKILL, again and again, and ends with the bits of a training that nobody touched."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
from attempts import Attempts, digest

POINTS = (
    "train.staging",
    "train.chunk_written",
    "train.manifest_written",
    "train.head_swap_before",
    "train.head_swap_after",
    "train.restore",
)


@pytest.fixture(scope="module")
def undisturbed(attempts: Attempts, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the final weights."""
    folder = tmp_path_factory.mktemp("undisturbed")
    found = attempts.finished(folder)
    assert attempts.finished(tmp_path_factory.mktemp("again")) == found, "training is not deterministic by itself"
    assert attempts.finished(folder) == found, "a training that is done changes when it is started again"
    return found


def kill_at_random(attempts: Attempts, where: Path, expected: str, *, kills: int, seed: str, **options: object) -> int:
    """Kill at moments that are spread evenly over a training, and give the number of trainings that it took. Each of
    them ends with the digest that is expected."""
    calm = attempts.run(where / "calm", **options)
    moments = random.Random(seed)
    done, ended = 0, 1
    while done < kills:
        attempt = attempts.run(where / str(ended), kill_after=moments.uniform(0, calm.seconds), **options)
        if attempt.status == -signal.SIGKILL:
            done += 1
        else:
            assert attempt.status == 0, attempt.said
            assert digest(where / str(ended)) == expected
            ended += 1
    assert attempts.finished(where / str(ended), **options) == expected
    return ended


def kill_at(attempts: Attempts, folder: Path, point: str, passage: int, **options: object) -> str:
    """Kill at the n-th passage of a named point, go on, and give the digest of the final weights."""
    options["wait"] = True
    if point == "train.restore":
        attempts.run(folder, fault="train.head_swap_after:2", **options)  # something to restore
        passage = min(passage, 5)
    killed = attempts.run(folder, fault=f"{point}:{passage}", **options)
    assert killed.status == -signal.SIGKILL, f"{point} was not passed {passage} times: {killed.said}"
    return attempts.finished(folder, **options)


def test_random_kills(attempts: Attempts, tmp_path: Path, undisturbed: str) -> None:
    kill_at_random(attempts, tmp_path, undisturbed, kills=6, seed="suite")


@pytest.mark.parametrize("point", POINTS)
def test_kill_at_a_named_point(attempts: Attempts, tmp_path: Path, undisturbed: str, point: str) -> None:
    assert kill_at(attempts, tmp_path, point, passage=3) == undisturbed


def test_kill_with_workers_that_load_data(attempts: Attempts, tmp_path: Path, undisturbed: str) -> None:
    assert kill_at(attempts, tmp_path, "train.head_swap_after", 5, workers=2) == undisturbed


def test_kill_with_randomness_that_depends_on_the_step(attempts: Attempts, tmp_path: Path) -> None:
    expected = attempts.finished(tmp_path / "a", rng_mode="counter")
    assert kill_at(attempts, tmp_path / "b", "train.head_swap_after", 5, rng_mode="counter") == expected


def test_without_the_generators_the_result_differs(attempts: Attempts, tmp_path: Path, undisturbed: str) -> None:
    """The control: the test can fail."""
    assert kill_at(attempts, tmp_path, "train.head_swap_after", 5, restore_rng=False) != undisturbed
