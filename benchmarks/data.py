"""Reading training data: `python benchmarks/data.py [--lines 10000000] [--folder F]`, with a Python that has torch.

Lorry's shuffled batches beside a plain torch DataLoader over a list of lines, and `datasets` streaming if installed.
Each contestant is a process of its own. Per contestant: seconds until the first batch on a first start and on a later
one, with nothing of the file in the page cache both times; samples per second; bytes read from the disk; seconds from
nothing to the first batch near the end of the first epoch; memory of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH, SAMPLES, LEFT = 32, 500_000, 1_000
Opened = Callable[[Path, int], Iterator[Any]]
"""(file, samples to skip) → batches."""


def lorry_batches(path: Path, skip: int) -> Iterator[Any]:
    return iter(_lorry(path, skip))


def lorry_two_workers(path: Path, skip: int) -> Iterator[Any]:
    return iter(_lorry(path, skip).loader(2))


def _lorry(path: Path, skip: int) -> Any:
    import lorry

    data = lorry.data.text(path).batches(batch=BATCH, seed=1)
    data.load_state_dict({**data.state_dict(), "sample": skip})
    return data


def list_of_lines(path: Path, skip: int, **options: int) -> Iterator[Any]:
    """What resumes it is reading all, shuffling all, and skipping the indices: there is no other way in torch."""
    import torch
    from torch.utils.data import DataLoader

    with path.open() as file:
        lines = file.read().splitlines()
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(1)).tolist()[skip:]
    return iter(DataLoader(lines, batch_size=BATCH, sampler=order, **options))  # type: ignore[arg-type]


def list_two_workers(path: Path, skip: int) -> Iterator[Any]:
    return list_of_lines(path, skip, num_workers=2)


def datasets_streaming(path: Path, skip: int) -> Iterator[Any]:
    """Shuffled in a buffer of 10,000 (its way), which is not restored."""
    import datasets

    data = datasets.load_dataset("text", data_files=str(path), split="train", streaming=True)
    return iter(data.skip(skip).shuffle(seed=1, buffer_size=10_000).batch(BATCH))


CONTESTANTS: dict[str, Opened] = {
    "lorry": lorry_batches,
    "lorry, 2 workers": lorry_two_workers,
    "list + DataLoader": list_of_lines,
    "the same, 2 workers": list_two_workers,
    "datasets streaming": datasets_streaming,
}


def measure(name: str, path: Path, skip: int, samples: int) -> dict[str, float]:
    """In a process of its own. Importing libraries does not count."""
    for library in ("torch.utils.data", "datasets" if name.startswith("datasets") else "lorry.data"):
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    disk, started = bytes_read(), time.perf_counter()
    batches = CONTESTANTS[name](path, skip)
    next(batches)
    ready = time.perf_counter()
    for _ in itertools.islice(batches, samples // BATCH):
        pass
    done = time.perf_counter()
    memory = own_memory()
    del batches  # ends workers, whose reads count from then on
    gc.collect()
    return {
        "first_batch": ready - started,
        "samples_per_second": samples // BATCH * BATCH / (done - ready) if samples else 0.0,
        "megabytes_read": (bytes_read() - disk) / 1e6,
        "megabytes_of_memory": memory / 1e6,
    }


def bytes_read() -> int:
    """From the disk, workers that have ended included."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def own_memory() -> int:
    """Without mapped files, whose pages the kernel takes back when it needs them."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


def in_own_process(name: str, path: Path, skip: int, samples: int) -> dict[str, float] | str:
    command = [sys.executable, __file__, "--one", name, str(path), str(skip), str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def written(path: Path, lines: int) -> None:
    """20 to 160 letters a line."""
    if path.exists():
        return
    rng = random.Random(1)
    some = [bytes(rng.choices(b"abcdefghij klmnop", k=rng.randint(20, 160))) + b"\n" for _ in range(10_000)]
    with path.open("wb") as file:
        for start in range(0, lines, len(some)):
            rng.shuffle(some)
            file.write(b"".join(some[: lines - start]))
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Nothing of it is in the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="keeps the file between runs")
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, path, skip, samples = options.one
        print(json.dumps(measure(name, Path(path), int(skip), int(samples))), flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = (options.folder or Path(scratch)) / f"{options.lines}.txt"
        written(path, options.lines)
        print(f"{options.lines:,} lines, {path.stat().st_size / 1e6:,.0f} MB, batches of {BATCH}")
        samples = min(SAMPLES, options.lines - BATCH)
        starts = [("first start", 0, samples, True), ("later start", 0, samples, True)]
        starts += [("all in memory", 0, samples, False), ("near the end", options.lines - LEFT, 0, False)]
        for name in options.only or CONTESTANTS:
            os.environ["XDG_CACHE_HOME"] = os.environ["HF_HOME"] = f"{scratch}/{name}"
            for title, skip, count, cold in starts:
                if cold:
                    forget(path)
                print(f"{name:20} {title:14}", told(in_own_process(name, path, skip, count)), flush=True)


def told(found: dict[str, float] | str) -> str:
    if isinstance(found, str):
        return found
    return (
        f"first batch {found['first_batch']:8.3f} s, {found['samples_per_second']:9,.0f} samples/s, "
        f"{found['megabytes_read']:6,.0f} MB read, {found['megabytes_of_memory']:6,.0f} MB of memory"
    )


if __name__ == "__main__":
    main()
