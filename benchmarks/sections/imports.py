"""What an import adds to an empty Python of the same environment."""

from __future__ import annotations

from figures import Budget
from rounds import LORRY, OutError, Results, alternate, say
from setup import python_of

from sections.commands import median_wall
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
                empty = median_wall([python, "-c", "pass"], options.count(5, 1))
                whole = median_wall([python, "-c", f"import {module}"], options.count(5, 1))
            except OutError as reason:
                results.out.append(f"{name} in import: {reason}")
                say(f"  ! {name}: {reason}")
                del modules[name]
                continue
            results.of(EMPTY, name, "ms").add(turn, {"value": empty})
            results.of(IMPORT, name, "ms").add(turn, {"value": whole - empty})

    each()  # byte code is compiled and the page cache is warm after this
    results.series.pop(EMPTY, None)
    results.series.pop(IMPORT, None)
    alternate(options.rounds, each, IMPORT)
