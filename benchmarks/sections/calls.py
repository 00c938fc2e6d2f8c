"""One call at a time, idle, with a busy core and beside a journaling client; many at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from figures import Budget
from rounds import (
    DASK,
    EXECUTOR,
    LORRY,
    POOL,
    RAY,
    TWO_HOPS,
    Contest,
    Entry,
    Results,
    alternate,
    one_core_busy,
)
from server import fresh_server

from sections.options import Options

TITLE = "Calls of a no-op"
RAY_TASK = replace(RAY, name="Ray task")
RAY_ACTOR = replace(RAY, name="Ray actor")
JOURNALING = Entry("Lorry, a second client", "lorry_client")
IDLE, BUSY, JOURNALED = "call, idle", "call, one core busy", "call, another client journals"
SPAWN, THREADS, RIVAL = "pipelined, one thread", "8 threads, one call each", "journaled meanwhile"


def _latency_budgets(measure: str) -> tuple[Budget, ...]:
    return (
        Budget("≤ 2.5 x the bare two-hop prototype", measure, 2.5, TWO_HOPS.name),
        Budget("≤ 0.6 x ProcessPoolExecutor", measure, 0.6, EXECUTOR.name),
        Budget("≤ 1/8 of a Ray actor call", measure, 1 / 8, RAY_ACTOR.name),
    )


BUDGETS = (*_latency_budgets(IDLE), *_latency_budgets(BUSY))


def run(options: Options, results: Results) -> None:
    quick, slow = options.count(1000, 100), options.count(40, 10)
    latencies: list[tuple[Entry, str, dict[str, Any]]] = [
        (LORRY, "call", {"n": quick}),
        (TWO_HOPS, "call", {"n": quick}),
        (EXECUTOR, "call", {"n": quick}),
        (POOL, "call", {"n": quick}),
        (RAY_ACTOR, "call", {"n": quick}),
        (RAY_TASK, "task", {"n": quick // 4}),
        (DASK, "call", {"n": slow}),
    ]
    many = options.count(5000, 200)
    with fresh_server(), Contest([LORRY, TWO_HOPS, EXECUTOR, POOL, RAY, DASK], results) as contest:
        alternate(options.rounds, lambda: contest.round(IDLE, "µs", latencies), IDLE)
        with one_core_busy():
            alternate(options.rounds, lambda: contest.round(BUSY, "µs", latencies), BUSY)
        spawns = [
            (LORRY, "spawn", {"n": many // 5}),
            (EXECUTOR, "spawn", {"n": many}),
            (POOL, "spawn", {"n": many}),
            (RAY_ACTOR, "spawn", {"n": many}),
            (DASK, "spawn", {"n": many // 10}),
        ]
        alternate(options.rounds, lambda: contest.round(SPAWN, "/s", spawns), SPAWN)
        threads = [(entry, "threads", {"n": many}) for entry in (LORRY, EXECUTOR, POOL, RAY_ACTOR)]
        alternate(options.rounds, lambda: contest.round(THREADS, "/s", threads), THREADS)
        _beside_a_journal(options, contest, quick)


def _beside_a_journal(options: Options, contest: Contest, n: int) -> None:
    """Rounds without and with another client that spawns without pause, so that both p99 are of the same minute."""
    with Contest([JOURNALING], contest.results) as second:

        def each() -> None:
            contest.round("call, before it", "µs", [(LORRY, "call", {"n": n})])
            second.ask(RIVAL, "/s", JOURNALING, "journal_start", {})
            contest.round(JOURNALED, "µs", [(LORRY, "call", {"n": n}), (EXECUTOR, "call", {"n": n})])
            second.ask(RIVAL, "/s", JOURNALING, "journal_stop", {})

        alternate(options.rounds, each, JOURNALED)
