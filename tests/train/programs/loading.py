"""Batches through torch's DataLoader with any number of workers; prints what it saw as JSON."""

from __future__ import annotations

import itertools
import json
import random
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader

import lorry
from lorry.train.batches import Batches

PATH = sys.argv[1]
EPOCHS, BATCH = 2, 8


def noisy(sample: str, rng: random.Random) -> tuple[str, float]:
    return sample, rng.random()


def masked(samples: list[tuple[str, float]]) -> dict[str, Any]:
    """Draws from every global generator, as collators that mask do."""
    return {"samples": samples, "noise": [random.random(), float(torch.rand(1))]}


def batches(**options: Any) -> Batches:
    return lorry.data.text(PATH).batches(batch=BATCH, epochs=EPOCHS, seed=3, map=noisy, collate=masked, **options)


def in_attempts(workers: list[int], lives: int) -> list[Any]:
    """Each attempt ends in the middle, with prefetched batches lost, and the next has another number of workers."""
    seen: list[Any] = []
    state = batches().state_dict()
    for count in itertools.cycle(workers):
        data = batches()
        data.load_state_dict(state)
        before = len(seen)
        seen += itertools.islice(data.loader(count), lives)
        state = json.loads(json.dumps(data.state_dict()))
        if len(seen) == before:
            return seen
    raise AssertionError


def undisturbed() -> bool:
    """A loop leaves the program's own generators where they were."""
    torch.manual_seed(5)
    wanted = torch.rand(3).tolist()
    found = []
    for workers in (0, 2):
        torch.manual_seed(5)
        loop = iter(batches().loader(workers))
        next(loop)
        found.append(torch.rand(3).tolist())
    return found == [wanted, wanted]


def place() -> int:
    data = batches()
    loop = iter(data.loader(2, prefetch_factor=4))
    for _ in range(3):
        next(loop)
    return int(data.state_dict()["sample"])


def spawned() -> list[Any]:
    return list(batches().loader(1, multiprocessing_context="spawn"))


class Augmented:
    """A dataset whose samples draw, as those of images do."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> tuple[int, float, float]:
        return number, random.random(), float(torch.rand(1))


def augmented(workers: int) -> list[Any]:
    """In two attempts."""
    first, second = (Batches(Augmented(), batch=BATCH, epochs=EPOCHS, seed=3) for _ in range(2))
    seen = list(itertools.islice(first.loader(workers), 2))
    second.load_state_dict(first.state_dict())
    return seen + list(second.loader(workers))


def out_of_order() -> str:
    try:
        batches().loader(2, in_order=False)
    except lorry.exception.InvalidError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    report = {
        "plain": list(batches()),
        "workers": [list(batches().loader(count)) for count in (0, 1, 3)],
        "attempts": in_attempts([2, 0, 1], 5),
        "undisturbed": undisturbed(),
        "place": place(),
        "spawned": spawned(),
        "augmented": [list(Batches(Augmented(), batch=BATCH, epochs=EPOCHS, seed=3)), augmented(0), augmented(2)],
        "out of order": out_of_order(),
        "dataset": list(itertools.chain(*DataLoader(lorry.data.text(PATH), batch_size=5, num_workers=2))),  # type: ignore[arg-type]
    }
    json.dump(report, sys.stdout)
