"""What slices cost: the same training in three slices and in one."""

from __future__ import annotations

import server
from figures import Budget
from rounds import LORRY, Contestant, Entry, OutError, Results, say

from sections.options import Options

TITLE = "Training in slices"
ENTRY = Entry(LORRY.name, "slices_lorry")
WHOLE = "without slices"
LIMITS = (60.0, 300.0)
"""Seconds per slice."""
COMPUTED = 900.0
"""Not run: computed from what passes between two slices, as measured."""
STEP, SHARE = "run.step(), nothing due", "slices of {:g} s cost"
BUDGETS = (
    Budget("≤ 20 µs", STEP, 20),
    Budget("≤ 3 % at 5 minutes", SHARE.format(300), 3, name="between slices"),
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
    """As many steps as take two slices and a half, in slices and without."""
    trial = contestant.ask("train", 600.0, limit=3600.0, steps=100)
    steps = int(2.5 * limit / trial["seconds_per_step"])
    sliced = contestant.ask("train", 8 * limit + 60, limit=limit, steps=steps)
    whole = contestant.ask("train", 8 * limit + 60, limit=86_400.0, steps=steps)
    assert sliced["weights"] == whole["weights"], "slices changed the result"
    gaps = sliced["seconds_between_slices"]
    say(f"  {steps:,} steps, {sliced['slices']} slices of {limit:g} s: {sliced}")
    measure = f"training, slices of {limit:g} s"
    results.of(measure, LORRY.name, "s").add(turn, {"value": sliced["value"]})
    results.of(measure, WHOLE, "s").add(turn, {"value": whole["value"]})
    between = sum(gaps) / len(gaps)
    results.of(f"from the last step of a slice of {limit:g} s to the next", LORRY.name, "s").add(
        turn, {"value": between}
    )
    results.of(SHARE.format(limit), "between slices", "%").add(turn, {"value": 100 * between / limit})
    results.of(SHARE.format(limit), "as the clock says", "%").add(
        turn, {"value": 100 * (sliced["value"] / whole["value"] - 1)}
    )
    computed = SHARE.format(COMPUTED) + " (computed)"
    results.of(computed, f"from {limit:g} s", "%").add(turn, {"value": 100 * between / COMPUTED})
    results.of("bytes written for checkpoints", f"slices of {limit:g} s", "MB").add(
        turn, {"value": sliced["bytes_written"] / 1e6}
    )
