"""Samples per second from a file of lines that lies in memory, shuffled, in batches of 32."""

from __future__ import annotations

from figures import Budget
from rounds import LORRY, Results, alternate
from server import base_folder

from sections.options import Options
from sections.reading import Readers, lines, rotated

TITLE = "Training data: samples per second"
STREAMING, LIST = "datasets streaming", "list of lines, DataLoader"
NAMES = (
    LORRY.name,
    "Lorry, loader(2)",
    "Lorry's dataset, DataLoader",
    "Lorry's dataset, DataLoader(2)",
    LIST,
    "list of lines, DataLoader(2)",
    "datasets, DataLoader",
    "datasets, DataLoader(2)",
    STREAMING,
)
RATE, MEMORY = "samples", "memory of its own"
BUDGETS = (
    Budget("≥ datasets streaming", RATE, 1, peer=STREAMING, at_least=True),
    Budget("≥ 1/2 of a list in memory", RATE, 0.5, peer=LIST, at_least=True),
)


def run(options: Options, results: Results) -> None:
    count, samples = options.count(10_000_000, 50_000), options.count(500_000, 10_000)
    turn = 0

    def each() -> None:
        nonlocal turn
        turn += 1
        for name in rotated(NAMES, turn):
            found = readers.start(name, path, 0, samples)
            if found:
                results.of(RATE, name, "/s").add(turn, {"value": found["rate"]})
                results.of(MEMORY, name, "MB").add(turn, {"value": found["memory"] / 1e6})

    with lines(count, base_folder()) as path:
        readers = Readers(results, path.parent)
        for name in NAMES:
            readers.start(name, path, 0, 64)  # indexes and conversions are made
        alternate(options.rounds, each, RATE)
