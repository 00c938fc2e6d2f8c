"""Tiny inputs, x*x + 1: Lorry as written, pools tuned by an expert, Ray and Dask one task per input."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import server
from figures import Budget
from rounds import DASK, EXECUTOR, JOBLIB, LORRY, POOL, RAY, Contest, Results, alternate, say

from sections.options import Options

TITLE = "Map over tiny inputs"
TUNED_IMAP = replace(POOL, name="Pool.imap, tuned")
POOL_MAP = replace(POOL, name="Pool.map")
TUNED_EXECUTOR = replace(EXECUTOR, name="ProcessPoolExecutor, tuned")
AUTOMATIC = replace(JOBLIB, name="joblib, automatic batching")
SIZES = (10_000, 100_000, 1_000_000)
GROWTH = "server memory, 1,000,000 above 100,000"


def measure(n: int) -> str:
    return f"map, {n:,} inputs"


LARGEST = measure(SIZES[-1])
BUDGETS = (
    Budget("≥ 1/5 of a tuned Pool.imap", LARGEST, 1 / 5, TUNED_IMAP.name, at_least=True),
    Budget("≥ 2 x joblib's automatic batching", LARGEST, 2, AUTOMATIC.name, at_least=True),
    Budget("≥ 300 x Ray, one task per input (at 10,000)", LARGEST, 300, RAY.name, measure(10_000), at_least=True),
    Budget(
        "≥ 300 x Dask, one task per input (at 10,000)",
        LARGEST,
        300,
        DASK.name,
        measure(10_000),
        at_least=True,
    ),
    Budget("server's peak at 1,000,000 ≤ at 100,000 + 16 MiB", GROWTH, 16),
)


def run(options: Options, results: Results) -> None:
    _memory(options, results)
    entries = [LORRY, POOL, EXECUTOR, JOBLIB, RAY, DASK]
    with server.fresh_server(), Contest(entries, results) as contest:
        for n in SIZES[: options.count(3, 2)]:
            asked = [
                (LORRY, "map", {"n": n}),
                (TUNED_IMAP, "imap", {"n": n}),
                (POOL_MAP, "map", {"n": n}),
                (TUNED_EXECUTOR, "map", {"n": n}),
                (AUTOMATIC, "map", {"n": n}),
            ]
            if n == SIZES[0]:
                per_input = options.count(n, 500)
                asked += [(RAY, "map", {"n": per_input}), (DASK, "map", {"n": per_input})]
            alternate(options.rounds, partial(contest.round, measure(n), "/s", asked), measure(n))


def _memory(options: Options, results: Results) -> None:
    """Peaks of a fresh server's worker, map after map: what is kept per input would show."""
    small, large = options.count(100_000, 10_000), options.count(1_000_000, 50_000)
    with server.fresh_server(), Contest([LORRY], results) as contest:
        peaks: dict[int, list[float]] = {small: [], large: []}
        contest.ask("", "/s", LORRY, "journal_start", {})
        contest.ask("warm-up of the memory rows", "/s", LORRY, "journal_stop", {})
        pid = server.worker()
        for n in (small, small, large, large):
            server.reset_peak(pid)
            if contest.ask(f"map, {n:,} inputs, fresh server", "/s", LORRY, "map", {"n": n}) is None:
                return
            resident, peak = server.memory(pid)
            say(f"  server after {n:,} inputs: {resident:.1f} MiB, peak {peak:.1f} MiB")
            peaks[n].append(peak)
    results.series.pop("warm-up of the memory rows", None)
    before, after = peaks[small][-1], max(peaks[large])
    for name, value in (
        (f"server's peak, {small:,} inputs", before),
        (f"server's peak, {large:,} inputs", after),
        (GROWTH, after - before),
    ):
        results.of(name, LORRY.name, "MiB").add(0, {"value": value})
