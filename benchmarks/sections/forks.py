"""What the size of a template costs its containers: Lorry's starts beside the bare fork of a process of that size."""

from __future__ import annotations

import server
from rounds import Contest, Results, alternate

from sections.options import Options
from sections.starts import FORK, LIMIT, LORRY_COLD

TITLE = "Templates of 0.2, 1 and 5 GB"
BUDGETS = ()
TORCH = 200
"""MiB that a process has once it imported torch."""


def run(options: Options, results: Results) -> None:
    sizes = (200, 1024) if options.quick else (200, 1024, 5120)
    n, forks = options.count(10, 2), options.count(50, 3)

    def each() -> None:
        for mib in sizes:
            asked = [
                (entry, verb, {"mib": mib - TORCH, "n": count})
                for entry, verb, count in ((LORRY_COLD, "large", n), (FORK, "fork", forks))
            ]
            contest.round(f"call from zero, {mib / 1024:.2g} GB", "ms", asked)

    with server.fresh_server(), Contest([LORRY_COLD, FORK], results, start_limit=LIMIT) as contest:
        alternate(options.rounds, each, "forks")
