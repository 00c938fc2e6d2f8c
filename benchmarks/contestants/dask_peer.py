"""Dask distributed: a local cluster of two worker processes, one task per input."""

from __future__ import annotations

import warnings

import turns
import work
from distributed import Client, LocalCluster


def main() -> None:
    warnings.simplefilter("ignore")  # "Sending large graph": that is what is measured
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        host="127.0.0.1",
        silence_logs=50,
    )
    with cluster, Client(cluster) as client:

        def one(function: object, argument: object) -> object:
            return client.submit(function, argument, pure=False).result()

        def pipelined(n: int) -> None:
            client.gather([client.submit(work.noop, i, pure=False) for i in range(n)])

        turns.serve(
            {
                "call": lambda n: turns.latencies(lambda: one(work.noop, 1), n),
                "spawn": lambda n: turns.rate(pipelined, n),
                "map": lambda n: turns.mapped(
                    lambda c: client.gather(client.map(work.square, range(c), pure=False)), n
                ),
                "payload": lambda size, n: turns.payload(lambda a: one(work.total, a), size, n),
                "returned": lambda size, n: turns.returned(lambda s: one(work.full, s), size, n),
            }
        )


if __name__ == "__main__":
    main()
