"""Trainer and SFTTrainer, killed at any moment, end with the bits of a training that nobody touched."""

from __future__ import annotations

import functools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from attempts import Attempts, Ended, digest

KINDS = {
    "causal": {"kind": "causal"},
    "masked": {"kind": "masked"},
    "masked, made by workers": {"kind": "masked", "workers": 2},
    "masked, randomness by the step": {"kind": "masked", "rng_mode": "counter"},
    "sft": {"kind": "sft"},
    "lora": {"kind": "lora"},
}
EARLY = {
    "kind": "masked",
    "patience": 2,
    "num_train_epochs": 6,
    "learning_rate": 0.03,
    "eval_steps": 2,
    "save_strategy": "best",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "restore_callback_states_from_checkpoint": True,
}


@pytest.fixture(scope="module")
def train(attempts: Attempts) -> Any:
    """One attempt; the first one needs a while to import."""
    packages = attempts.run(Path("/nowhere"), program="hugging_face_packages")
    if "ModuleNotFoundError" in packages.said:
        pytest.skip(packages.said.splitlines()[-1])
    return functools.partial(attempts.run, program="hugging_face", warm=True)


def finish(train: Any, folder: Path, **options: Any) -> tuple[str, Any]:
    """The digest of the weights, and what Trainer logged."""
    ended: Ended = train(folder, **options)
    assert ended.status == 0, ended.said
    return digest(folder), json.loads((folder / "history.json").read_text())


def steps_trained(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "loss" in row]


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_killed_training_ends_with_the_same_weights_and_logs(
    train: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    expected = finish(train, tmp_path / "calm", **options)
    rough = tmp_path / "rough"
    for point in ("train.head_swap_after:3", "train.manifest_written:2", "train.staging:90"):
        assert train(rough, fault=point, wait=True, **options).status == -signal.SIGKILL, point
    train(rough, kill_after=0.4, **options)
    assert finish(train, rough, **options) == expected
    assert steps_trained(rough) == [*range(1, 37)]


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_without_the_generators_the_result_differs(train: Any, tmp_path: Path, kind: str) -> None:
    """The control: the test can fail."""
    expected = finish(train, tmp_path / "calm", kind=kind)
    train(tmp_path / "rough", kind=kind, fault="train.head_swap_after:3", wait=True)
    assert finish(train, tmp_path / "rough", kind=kind, restore_rng=False)[0] != expected[0]


@pytest.mark.parametrize("how", ["SIGTERM", "slice"])
def test_what_run_step_raises_passes_through_trainer(train: Any, tmp_path: Path, how: str) -> None:
    """In the middle of an epoch, with workers that are making the batches to come."""
    options = {"kind": "masked", "workers": 2, "every": 1}
    expected = finish(train, tmp_path / "calm", **options)
    left = train(tmp_path / "rough", leave=[how, 17], **options)
    assert left.said.splitlines()[-1] == {"SIGTERM": "SystemExit: 143", "slice": "hugging_face.YieldSlice"}[how]
    assert steps_trained(tmp_path / "rough")[-1] == 17
    assert finish(train, tmp_path / "rough", **options) == expected


def test_early_stopping_and_the_best_model(train: Any, tmp_path: Path) -> None:
    expected = finish(train, tmp_path / "calm", **EARLY)
    last = steps_trained(tmp_path / "calm")[-1]
    assert last < 72, "it did not stop early"
    impatient = f"train.head_swap_after:{last - 1}"  # one bad evaluation is seen, and one more ends it
    assert train(tmp_path / "rough", fault=impatient, wait=True, every=1, **EARLY).status == -signal.SIGKILL
    assert finish(train, tmp_path / "rough", **EARLY) == expected
    assert finish(train, tmp_path / "rough", **EARLY) == expected, "a training that is done trains on"
    assert steps_trained(tmp_path / "rough")[-1] == last


def test_steps_that_end_in_the_middle_of_an_epoch(train: Any, tmp_path: Path) -> None:
    """Trainer by itself trains such an epoch to its end when it is started again."""
    expected = finish(train, tmp_path / "calm", max_steps=20)
    assert finish(train, tmp_path / "calm", max_steps=20) == expected
    assert steps_trained(tmp_path / "calm") == [*range(1, 21)]


def test_the_order_of_samples_that_a_sampler_draws(train: Any, tmp_path: Path) -> None:
    options = {"train_sampling_strategy": "group_by_length", "eval_on_start": True}
    expected = finish(train, tmp_path / "calm", **options)
    train(tmp_path / "rough", fault="train.head_swap_after:5", wait=True, **options)
    assert finish(train, tmp_path / "rough", **options) == expected


def test_the_order_of_a_sampler_with_a_generator_of_its_own(train: Any, tmp_path: Path) -> None:
    expected = finish(train, tmp_path / "calm", weighted=True)
    train(tmp_path / "rough", fault="train.head_swap_after:15", wait=True, every=1, weighted=True)  # in epoch 2 of 3
    assert finish(train, tmp_path / "rough", weighted=True) == expected


def test_other_data_is_refused(train: Any, tmp_path: Path) -> None:
    train(tmp_path, fault="train.head_swap_after:3", wait=True)
    assert "46 samples in 23 batches, 2 of them per step" in train(tmp_path, per_device_train_batch_size=4).said


def test_what_is_refused(attempts: Attempts, train: Any, tmp_path: Path) -> None:
    ended = attempts.run(tmp_path, program="hugging_face_refused")
    assert ended.status == 0, ended.said
