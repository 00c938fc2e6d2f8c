"""Workers of torch's DataLoader make the same batches in the same order, however many they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import lorry

PROGRAM = Path(__file__).parent / "programs" / "loading.py"
LINES = [f"line {number}" for number in range(100)]


@pytest.fixture(scope="module")
def report(torch_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("loading")
    (folder / "lines.txt").write_text("\n".join(LINES))
    environ = {
        **os.environ,
        "PYTHONPATH": str(Path(lorry.__file__).parents[1]),
        "XDG_CACHE_HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    command = [torch_python, PROGRAM, folder / "lines.txt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_any_number_of_workers_makes_the_same_batches(report: dict[str, Any]) -> None:
    """Those of random collators included."""
    for batches in report["workers"]:
        assert batches == report["plain"]


def test_every_sample_comes_once_per_epoch(report: dict[str, Any]) -> None:
    seen = [sample for batch in report["plain"] for sample, _ in batch["samples"]]
    assert sorted(seen[:100]) == sorted(seen[100:]) == sorted(LINES)
    assert seen[:100] != seen[100:] != LINES
    noise = [noise for batch in report["plain"] for noise in batch["noise"]]
    assert len(set(noise)) == len(noise)


def test_the_number_of_workers_may_change_between_attempts(report: dict[str, Any]) -> None:
    assert report["attempts"] == report["plain"]


def test_what_workers_prefetched_is_not_counted(report: dict[str, Any]) -> None:
    assert report["place"] == 3 * 8


def test_the_programs_own_generators_are_not_disturbed(report: dict[str, Any]) -> None:
    assert report["undisturbed"]


def test_workers_that_are_spawned_make_them_too(report: dict[str, Any]) -> None:
    assert report["spawned"] == report["plain"]


def test_what_a_dataset_draws_for_a_sample_depends_on_its_place(report: dict[str, Any]) -> None:
    whole, alone, by_workers = report["augmented"]
    assert alone == by_workers == whole
    assert len({tuple(sample) for batch in whole for sample in batch}) == 40


def test_batches_out_of_order_are_refused(report: dict[str, Any]) -> None:
    assert "in_order=False would lose the place" in report["out of order"]


def test_ctrl_c_in_a_terminal_saves_though_workers_get_it_too(torch_python: Path, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [torch_python, PROGRAM.with_name("loading_slowly.py"), tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(lorry.__file__).parents[1])},
        start_new_session=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "waits for the second batch\n"
    os.killpg(program.pid, signal.SIGINT)
    program.communicate(timeout=30)
    assert program.returncode == -signal.SIGINT
    assert json.loads((tmp_path / "HEAD").read_text().splitlines()[0])["step"] >= 2, "it saved what it had done"


def test_a_dataset_of_lines_is_one_of_torch(report: dict[str, Any]) -> None:
    assert report["dataset"] == LINES
