"""One load of a model file in a process of its own: `load_weights.py WHO FOLDER cold|warm|make [MIB]`.

Timed is the load and one pass over all numbers: a library that maps the file and reads nothing has done no work yet.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from lorry import weights

WIDTH = 2048
FILES = {"safetensors": "model.safetensors", "torch": "model.pt"}
LOADERS = {
    "lorry.weights.load": (weights.load, "safetensors"),
    "safetensors.torch.load_file": (safetensors.torch.load_file, "safetensors"),
    "torch.load": (torch.load, "torch"),
    "torch.load(mmap=True)": (lambda path: torch.load(path, mmap=True), "torch"),
}


def make(folder: Path, mib: int) -> None:
    layers = {f"layer.{i}": torch.randn(WIDTH, WIDTH) for i in range(max(1, mib // (WIDTH * WIDTH >> 18)))}
    safetensors.torch.save_file(layers, folder / FILES["safetensors"])
    torch.save(layers, folder / FILES["torch"])


def page_cache(path: Path, cold: bool) -> None:
    """Out of the page cache (posix_fadvise, after its pages are on disk), or read into it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):
                pass


def main() -> None:
    who, folder, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if how == "make":
        make(folder, int(sys.argv[4]))
        return
    load, kind = LOADERS[who]
    path = folder / FILES[kind]
    torch.ones(1).sum()
    page_cache(path, how == "cold")
    began = time.perf_counter()
    tensors = load(path)
    loaded = time.perf_counter()
    total = sum(float(tensor.sum()) for tensor in tensors.values())
    ended = time.perf_counter()
    assert total == total
    print(json.dumps({"value": (ended - began) * 1e3, "load": (loaded - began) * 1e3}))


if __name__ == "__main__":
    main()
