"""Bytes that four slices of one epoch read from far away; each slice is a new process that goes on behind the last.

The file lies on a tmpfs, which counts as far away here: Lorry keeps blocks of it on the disk. Counted is what reads
ask of file systems; what lies in caches on the disk is mapped, by Lorry and by `datasets`, and does not count.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rounds import LORRY, Results, say
from server import base_folder

from sections.options import Options
from sections.reading import Readers, lines

TITLE = "Training data: bytes read from far away"
BUDGETS = ()
NAMES = (LORRY.name, "list of lines, DataLoader", "datasets, DataLoader", "datasets streaming")
SLICES = 4
FAR = Path("/dev/shm")


def run(options: Options, results: Results) -> None:
    """Once: bytes do not vary."""
    count = options.count(10_000_000, 50_000)
    with lines(count, FAR) as path:
        results.out.append(f"The file has {path.stat().st_size / 1e6:,.0f} MB")
        for name in NAMES:
            with tempfile.TemporaryDirectory(prefix="data-", dir=base_folder()) as caches:
                readers = Readers(results, Path(caches))
                say(f"  {name}")
                for number in range(SLICES):
                    found = readers.start(name, path, number * count // SLICES, count // SLICES, "far")
                    if found:
                        results.of(f"slice {number + 1} of {SLICES}", name, "MB").add(
                            1, {"value": found["bytes"] / 1e6}
                        )
