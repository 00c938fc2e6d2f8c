"""What an import adds to an empty Python of the same environment."""

from __future__ import annotations

import statistics

from figures import Budget
from rounds import LORRY, OutError, Results, alternate, say
from setup import python_of

from sections.commands import wall
from sections.options import Options

TITLE = "Import"
IMPORT, EMPTY = "import, above an empty Python", "an empty Python"
MODULES = {
    LORRY.name: ("lorry", "lorry"),
    "Ray": ("ray", "ray"),
    "Dask": ("dask", "distributed"),
    "joblib": ("joblib", "joblib"),
}
"""Contestant: environment, module."""
BUDGETS = (Budget("≤ 80 ms", IMPORT, 80),)


def run(options: Options, results: Results) -> None:
    modules = dict(MODULES)
    for name, (environment, _) in MODULES.items():
        if python_of(environment) is None:
            results.out.append(f"{name}: no environment {environment!r}")
            del modules[name]
    turn = 0

    def each() -> None:
        nonlocal turn
        turn += 1
        for name, (environment, module) in list(modules.items()):
            python = str(python_of(environment))
            try:
                pairs = [
                    (wall([python, "-c", "pass"]), wall([python, "-c", f"import {module}"]))
                    for _ in range(options.count(5, 1))
                ]
            except OutError as reason:
                results.out.append(f"{name} in import: {reason}")
                say(f"  ! {name}: {reason}")
                del modules[name]
                continue
            results.of(EMPTY, name, "ms").add(turn, {"value": statistics.median(empty for empty, _ in pairs)})
            results.of(IMPORT, name, "ms").add(
                turn, {"value": statistics.median(whole - empty for empty, whole in pairs)}
            )

    each()  # byte code is compiled and the page cache is warm after this
    results.series.pop(EMPTY, None)
    results.series.pop(IMPORT, None)
    alternate(options.rounds, each, IMPORT)
