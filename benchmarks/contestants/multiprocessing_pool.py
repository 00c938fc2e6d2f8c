"""multiprocessing.Pool, two workers; chunk sizes as an expert sets them."""

from __future__ import annotations

import multiprocessing

import turns
import work


def main() -> None:
    with multiprocessing.Pool(2) as pool:

        def pipelined(n: int) -> None:
            for result in [pool.apply_async(work.noop, (i,)) for i in range(n)]:
                result.get()

        def tuned_imap(n: int) -> list[int]:
            return list(pool.imap(work.square, range(n), chunksize=max(1, n // 16)))

        turns.serve(
            {
                "call": lambda n: turns.latencies(lambda: pool.apply(work.noop, (1,)), n),
                "spawn": lambda n: turns.rate(pipelined, n),
                "threads": lambda n: turns.threaded_rate(lambda: pool.apply(work.noop, (1,)), n, 8),
                "imap": lambda n: turns.mapped(tuned_imap, n),
                "map": lambda n: turns.mapped(lambda count: pool.map(work.square, range(count)), n),
            }
        )


if __name__ == "__main__":
    main()
