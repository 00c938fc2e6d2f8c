"""ProcessPoolExecutor with `spawn`: a new pool of one worker, which imports torch for its first input."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import turns


def add() -> float:
    import torch

    return float(torch.ones(8).sum())


def start() -> dict[str, float]:
    began = turns.now()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(add).result() == 8.0
        return {"value": (turns.now() - began) * 1e3}


if __name__ == "__main__":
    turns.serve({"start": start})
