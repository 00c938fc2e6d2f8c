"""What slices cost: training in three of them, and the same without."""

from __future__ import annotations

from typing import Any

import server
from figures import Budget
from rounds import LORRY, Contestant, Entry, OutError, Results, say

from sections.options import Options

TITLE = "Training in slices"
ENTRY = Entry(LORRY.name, "slices_lorry")
LIMITS = (60.0, 300.0)
"""Seconds per slice."""
COMPUTED = 900.0
"""Not run: computed from what passes between two slices, as measured."""
BETWEEN = "between slices"
STEP, SHARE = "run.step(), nothing due", "slices of {:g} s cost"
BUDGETS = (
    Budget("≤ 20 µs", STEP, 20),
    Budget("≤ 3 % at 5 minutes", SHARE.format(300), 3, name=BETWEEN),
)


def run(options: Options, results: Results) -> None:
    with server.fresh_server():
        try:
            contestant = Contestant(ENTRY, 600.0)
        except OutError as reason:
            results.out.append(f"{ENTRY.name}: {reason}")
            return
        try:
            for turn in range(1, options.rounds + 1):
                found = contestant.ask("step", 60.0, n=options.count(1_000_000, 10_000))
                results.of(STEP, LORRY.name, "µs").add(turn, found)
                for limit in (6.0,) if options.quick else LIMITS:
                    _compare(contestant, limit, turn, results)
        except OutError as reason:
            results.out.append(f"{ENTRY.name}: {reason}")
        finally:
            contestant.end()


def _compare(contestant: Contestant, limit: float, turn: int, results: Results) -> None:
    """As many steps as take two slices and a half, in slices, and for the short ones without too."""
    trial = contestant.ask("train", 600.0, seconds=3600.0, steps=100)
    steps = int(2.5 * limit / trial["seconds_per_step"])
    sliced = contestant.ask("train", 8 * limit + 60, seconds=limit, steps=steps)
    gaps = sliced["seconds_between_slices"]
    between = sum(gaps) / len(gaps)
    say(f"  {steps:,} steps, {sliced['slices']} slices of {limit:g} s: {sliced}")
    after = f"from the last step of a slice of {limit:g} s to the next"
    results.of(after, LORRY.name, "s").add(turn, {"value": between})
    results.of(SHARE.format(limit), BETWEEN, "%").add(turn, {"value": 100 * between / limit})
    computed = SHARE.format(COMPUTED) + ", computed"
    results.of(computed, f"from {limit:g} s", "%").add(turn, {"value": 100 * between / COMPUTED})
    moved = f"bytes written, {sliced['slices']} slices of {limit:g} s"
    results.of(moved, LORRY.name, "MB").add(turn, {"value": sliced["bytes_written"] / 1e6})
    if limit <= LIMITS[0]:
        _without(contestant, limit, steps, sliced, turn, results)


def _without(
    contestant: Contestant, limit: float, steps: int, sliced: dict[str, Any], turn: int, results: Results
) -> None:
    whole = contestant.ask("train", 8 * limit + 60, seconds=86_400.0, steps=steps)
    assert sliced["weights"] == whole["weights"], "slices changed the result"
    measure = f"{steps:,} steps, slices of {limit:g} s"
    results.of(measure, LORRY.name, "s").add(turn, {"value": sliced["value"]})
    results.of(measure, "without slices", "s").add(turn, {"value": whole["value"]})
