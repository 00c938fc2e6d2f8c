"""Seconds from nothing to the first batch: at a first start, at a later one, and near the end of the file."""

from __future__ import annotations

from figures import Budget
from rounds import LORRY, Results, alternate, say
from server import base_folder

from sections.options import Options
from sections.reading import LEFT, Readers, lines, rotated

TITLE = "Training data: the first batch"
SKIP, STATE, LIST = "datasets streaming", "datasets streaming, state_dict", "list of lines, DataLoader"
FIRST, LATER, END = "first start", "later start", "near the end"
BUDGETS = (
    Budget("≤ 0.1 s", END, 0.1),
    Budget("≤ 1/100 of datasets streaming", END, 0.01, peer=SKIP),
)


def run(options: Options, results: Results) -> None:
    count = options.count(10_000_000, 50_000)
    turn = 0

    def each() -> None:
        nonlocal turn
        turn += 1
        for name in rotated((LORRY.name, LIST, "datasets, DataLoader", SKIP), turn):
            keep(LATER, name, 0)
            keep(END, name, count - LEFT)
        keep(END, STATE, count - LEFT)

    def keep(measure: str, name: str, skip: int) -> None:
        found = readers.start(name, path, skip, 64)
        if found:
            results.of(measure, name, "s").add(turn, {"value": found["first"]})

    with lines(count, base_folder()) as path:
        readers = Readers(results, path.parent)
        for name in (LORRY.name, LIST, "datasets, DataLoader", SKIP):
            keep(FIRST, name, 0)
        say("  reading to the end with datasets streaming, for its state")
        readers.start(STATE, path, "state", count - LEFT)
        alternate(options.rounds, each, TITLE)
