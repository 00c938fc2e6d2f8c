"""A float64 array is sent and summed; one comes back. First call apart, then the median of the others."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from figures import Budget
from rounds import DASK, EXECUTOR, JOBLIB, LORRY, MEMCPY, RAY, Contest, Entry, Results, alternate
from server import fresh_server

from sections.options import Options

TITLE = "Large payloads"
SIZES = {"1 KiB": (1 << 10, 100), "1 MiB": (1 << 20, 20), "100 MiB": (100 << 20, 5), "1 GiB": (1 << 30, 3)}
"""Size and calls per round."""
COPY_AND_SUM = replace(MEMCPY, name="memcpy and sum in one process")
"""The floor of a call that must copy: the sum is part of every contestant's time but of the memcpy's."""
BACK = "100 MiB back"
GIGABYTE_LIMIT = 60.0
"""Seconds for a contestant's round of 1 GiB; whoever needs more is out."""


def measure(label: str) -> str:
    return f"{label} argument"


BUDGETS = (Budget("≤ 2 x one warm memcpy, from the second call on", measure("1 GiB"), 2, MEMCPY.name),)


def run(options: Options, results: Results) -> None:
    entries = [LORRY, MEMCPY, EXECUTOR, JOBLIB, RAY, DASK]
    chosen = list(SIZES.items())[: options.count(4, 3)]
    rounds = min(options.rounds, 5)
    with fresh_server(), Contest(entries, results) as contest:
        for label, (size, calls) in chosen:
            asked: list[tuple[Entry, str, dict[str, Any]]]
            asked = [(entry, "payload", {"size": size, "n": calls}) for entry in entries]
            asked.append((COPY_AND_SUM, "copied_and_summed", {"size": size, "n": calls}))
            limit = GIGABYTE_LIMIT if size == 1 << 30 else 120.0
            alternate(rounds, partial(contest.round, measure(label), "ms", asked, limit), measure(label))
            if label == "100 MiB":
                back = [(entry, "returned", {"size": size, "n": calls}) for entry in entries]
                alternate(rounds, partial(contest.round, BACK, "ms", back), BACK)
