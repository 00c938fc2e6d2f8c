"""concurrent.futures.ProcessPoolExecutor, two workers."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import turns
import work


def main() -> None:
    with ProcessPoolExecutor(2) as pool:

        def pipelined(n: int) -> None:
            for future in [pool.submit(work.noop, i) for i in range(n)]:
                future.result()

        def tuned_map(n: int) -> list[int]:
            return list(pool.map(work.square, range(n), chunksize=max(1, n // 16)))

        turns.serve(
            {
                "call": lambda n: turns.latencies(lambda: pool.submit(work.noop, 1).result(), n),
                "spawn": lambda n: turns.rate(pipelined, n),
                "threads": lambda n: turns.threaded_rate(lambda: pool.submit(work.noop, 1).result(), n, 8),
                "map": lambda n: turns.mapped(tuned_map, n),
                "payload": lambda size, n: turns.payload(lambda a: pool.submit(work.total, a).result(), size, n),
                "returned": lambda size, n: turns.returned(lambda s: pool.submit(work.full, s).result(), size, n),
            }
        )


if __name__ == "__main__":
    main()
