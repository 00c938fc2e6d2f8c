"""Ray: one actor for calls, one task per input for maps; a cluster of its own on this machine."""

from __future__ import annotations

from typing import Any

import ray
import turns
import work


def main() -> None:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=3 << 30,
        _node_ip_address="127.0.0.1",
    )

    @ray.remote
    class Actor:
        def noop(self, x: Any = None) -> None:
            return None

    actor = Actor.options(num_cpus=0).remote()
    noop, square, total, full = (ray.remote(f) for f in (work.noop, work.square, work.total, work.full))
    ray.get([actor.noop.remote(), noop.remote(), square.remote(1)])
    turns.serve(
        {
            "call": lambda n: turns.latencies(lambda: ray.get(actor.noop.remote(1)), n),
            "task": lambda n: turns.latencies(lambda: ray.get(noop.remote(1)), n),
            "spawn": lambda n: turns.rate(lambda c: ray.get([actor.noop.remote(i) for i in range(c)]), n),
            "threads": lambda n: turns.threaded_rate(lambda: ray.get(actor.noop.remote(1)), n, 8),
            "map": lambda n: turns.mapped(lambda c: ray.get([square.remote(x) for x in range(c)]), n),
            "payload": lambda size, n: turns.payload(lambda a: ray.get(total.remote(a)), size, n),
            "returned": lambda size, n: turns.returned(lambda s: ray.get(full.remote(s)), size, n),
        }
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
