"""What a server keeps of calls that are over: nothing, if its memory does not grow with their number."""

from __future__ import annotations

import server
from figures import Budget
from rounds import LORRY, Contest, Results, say

from sections.options import Options

TITLE = "Memory of the server"
GROWTH = "server memory, 100,000 calls above 10,000"
BUDGETS = (Budget("after 100,000 calls ≤ after 10,000 + 8 MiB", GROWTH, 8),)


def run(options: Options, results: Results) -> None:
    few, all_ = options.count(10_000, 500), options.count(100_000, 2_000)
    sizes: list[float] = []
    with server.fresh_server(), Contest([LORRY], results) as contest:
        for calls in (few, all_ - few):
            # A tenth of the calls warm up and count too.
            if contest.ask("call, fresh server", "µs", LORRY, "call", {"n": calls * 10 // 11}, 600.0) is None:
                return
            sizes.append(server.memory(server.worker())[0])
            say(f"  server after {calls:,} calls more: {sizes[-1]:.1f} MiB")
    for measure, value in (
        (f"server, after {few:,} calls", sizes[0]),
        (f"server, after {all_:,} calls", sizes[1]),
        (GROWTH, sizes[1] - sizes[0]),
    ):
        results.of(measure, LORRY.name, "MiB").add(0, {"value": value})
