"""One start of a reader of training data, in a process of its own: `read_data.py WHO FILE SKIP SAMPLES [far]`.

Prints JSON: seconds until the first batch, behind `SKIP` samples; samples per second after it, over `SAMPLES`; bytes
asked of the file systems; memory that is the process's own. `WHO state` instead of numbers keeps the reader's own state
near the end beside the file. Importing libraries does not count. `far`: files on a tmpfs count as far away.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
import lorry.data
from lorry.train import blocks

BATCH, BUFFER = 32, 10_000
Opened = Callable[[Path, int], Iterator[Any]]
"""(file, samples to skip) → batches."""


def lorry_batches(path: Path, skip: int, workers: int | None = None) -> Iterator[Any]:
    data = lorry.data.text(path).batches(batch=BATCH, seed=1, epochs=2)
    data.load_state_dict({**data.state_dict(), "sample": skip})
    return iter(data if workers is None else data.loader(workers))


def map_style(source: Any, skip: int, workers: int) -> Iterator[Any]:
    """What resumes it is the order of all samples, from a place on: what is skipped is not read."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(1)).tolist()[skip:]
    return iter(DataLoader(source, batch_size=BATCH, sampler=order, num_workers=workers))


def lorry_dataset(path: Path, skip: int, workers: int = 0) -> Iterator[Any]:
    return map_style(lorry.data.text(path), skip, workers)


def list_of_lines(path: Path, skip: int, workers: int = 0) -> Iterator[Any]:
    with path.open() as file:
        return map_style(file.read().splitlines(), skip, workers)


def datasets_map(path: Path, skip: int, workers: int = 0) -> Iterator[Any]:
    import datasets

    return map_style(datasets.load_dataset("text", data_files=str(path), split="train"), skip, workers)


def streamed(path: Path) -> Any:
    import datasets

    return datasets.load_dataset("text", data_files=str(path), split="train", streaming=True)


def datasets_skip(path: Path, skip: int) -> Iterator[Any]:
    """Shuffled in a buffer, which is not restored."""
    return iter(streamed(path).skip(skip).shuffle(seed=1, buffer_size=BUFFER).batch(BATCH))


def datasets_state(path: Path, _skip: int) -> Iterator[Any]:
    """With its own state_dict; the buffer is not restored either."""
    data = streamed(path).shuffle(seed=1, buffer_size=BUFFER)
    data.load_state_dict(json.loads(state_of(path).read_text()))
    return iter(data.batch(BATCH))


CONTESTANTS: dict[str, Opened] = {
    "Lorry": lorry_batches,
    "Lorry, loader(2)": lambda path, skip: lorry_batches(path, skip, 2),
    "Lorry's dataset, DataLoader": lorry_dataset,
    "Lorry's dataset, DataLoader(2)": lambda path, skip: lorry_dataset(path, skip, 2),
    "list of lines, DataLoader": list_of_lines,
    "list of lines, DataLoader(2)": lambda path, skip: list_of_lines(path, skip, 2),
    "datasets, DataLoader": datasets_map,
    "datasets, DataLoader(2)": lambda path, skip: datasets_map(path, skip, 2),
    "datasets streaming": datasets_skip,
    "datasets streaming, state_dict": datasets_state,
}


def state_of(path: Path) -> Path:
    return path.with_suffix(".state")


def keep_state(path: Path, samples: int) -> None:
    data = streamed(path).shuffle(seed=1, buffer_size=BUFFER)
    for _ in itertools.islice(data, samples):
        pass
    state_of(path).write_text(json.dumps(data.state_dict()))


def measure(name: str, path: Path, skip: int, samples: int) -> dict[str, float]:
    if name.startswith("datasets"):
        import datasets

        datasets.disable_progress_bars()
    before, started = bytes_asked(), time.perf_counter()
    batches = CONTESTANTS[name](path, skip)
    next(batches)
    ready = time.perf_counter()
    for _ in itertools.islice(batches, samples // BATCH - 1):
        pass
    done = time.perf_counter()
    memory = own_memory()
    del batches  # ends workers, whose reads count from then on
    gc.collect()
    return {
        "first": ready - started,
        "rate": (samples // BATCH - 1) * BATCH / (done - ready),
        "bytes": bytes_asked() - before,
        "memory": memory,
    }


def bytes_asked() -> int:
    """By reads, workers that have ended included; what is mapped is not."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def own_memory() -> int:
    """Without mapped files, whose pages the kernel takes back when it needs them."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


def main() -> None:
    name, path, *numbers = sys.argv[1:]
    if "far" in numbers:
        blocks.FAR.add("tmpfs")
    if numbers[0] == "state":
        keep_state(Path(path), int(numbers[1]))
    else:
        print(json.dumps(measure(name, Path(path), int(numbers[0]), int(numbers[1]))), flush=True)


if __name__ == "__main__":
    main()
