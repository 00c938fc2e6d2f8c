"""Memory of many containers of one model: PSS of templates and containers together, after they have worked."""

from __future__ import annotations

import server
from figures import Budget
from rounds import LORRY, Contest, Entry, Results, say

from sections.options import Options
from sections.starts import LIMIT

TITLE = "Containers that share a 500 MB model"
RATIO = "PSS(10) ÷ PSS(1)"
BUDGETS = (Budget("PSS(10) ≤ 1.3 x PSS(1)", RATIO, 1.3),)
MODEL = Entry(LORRY.name, "model_lorry")


def run(options: Options, results: Results) -> None:
    mib, requests = options.count(500, 32), options.count(100, 5)
    counts = (1, 2) if options.quick else (1, 2, 5, 10)
    found: dict[int, float] = {}
    with server.fresh_server(), Contest([MODEL], results, start_limit=LIMIT) as contest:
        contest.ask("ready", "", MODEL, "ready", {"mib": mib}, LIMIT)
        for count in counts:
            pids = {"keeper": server.keeper(), "worker": server.worker()}
            asked = {"mib": mib, "count": count, "requests": requests, **pids}
            answer = contest.ask(f"PSS of {count} containers", "MiB", MODEL, "shared", asked, 900.0)
            if answer is None:
                return
            found[count] = answer["value"]
            say(f"  {answer['containers']} containers after {answer['requests']} requests: {found[count]:.0f} MiB")
    if 10 in found:
        results.of(RATIO, LORRY.name, "x").add(0, {"value": found[10] / found[1]})
