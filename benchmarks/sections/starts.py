"""From a call to its result when nothing of the function runs: Lorry beside what one would use otherwise."""

from __future__ import annotations

import server
from figures import Budget
from rounds import LORRY, Contest, Entry, OutError, Results, alternate, say
from setup import python_of

from sections.commands import wall
from sections.options import Options

TITLE = "Cold starts, torch imported"
START, ABOVE = "call from zero", "nothing warm, above import torch"
NOTHING, IMPORT = "Lorry, nothing warm", 'python -c "import torch"'
LORRY_COLD = Entry(LORRY.name, "cold_lorry")
FORK = Entry("bare fork of a process with torch", "cold_fork", "coldstart")
SPAWN = Entry("ProcessPoolExecutor(spawn)", "cold_spawn", "coldstart")
RAY = Entry("Ray, new actor", "cold_ray", "coldstart")
BUDGETS = (
    Budget("template warm ≤ 25 ms", START, 25),
    Budget("nothing warm ≤ import torch + 250 ms", ABOVE, 250, name=NOTHING),
)
LIMIT = 300.0
"""Seconds: the first start installs torch into the image."""


def run(options: Options, results: Results) -> None:
    warm, forks = options.count(20, 2), options.count(100, 5)
    turn = 0

    def each() -> None:
        nonlocal turn
        turn += 1
        contest.round(
            START,
            "ms",
            [
                (LORRY_COLD, "warm", {"n": warm}),
                (Entry(NOTHING, LORRY_COLD.script), "nothing", {"turn": turn}),
                (FORK, "fork", {"n": forks}),
                (SPAWN, "start", {}),
                (RAY, "start", {}),
            ],
        )
        _import(results, contest.turn)

    _import(Results(), 0)  # its bytecode is written, its files are in the page cache
    with server.fresh_server(), Contest([LORRY_COLD, FORK, SPAWN, RAY], results, start_limit=LIMIT) as contest:
        alternate(options.rounds, each, START)
    _difference(results)


def _import(results: Results, turn: int) -> None:
    python = python_of("coldstart")
    if python is None:
        return
    try:
        value = wall([python, "-c", "import torch"])
    except OutError as reason:
        results.out.append(f"{IMPORT}: {reason}")
        say(f"  ! {IMPORT}: {reason}")
        return
    results.of(START, IMPORT, "ms").add(turn, {"value": value})


def _difference(results: Results) -> None:
    """Of the same rounds."""
    found = results.series.get(START, {})
    if NOTHING not in found or IMPORT not in found:
        return
    ours, imports = found[NOTHING].rounds, found[IMPORT].rounds
    for turn in ours.keys() & imports.keys():
        results.of(ABOVE, NOTHING, "ms").add(turn, {"value": ours[turn] - imports[turn]})
