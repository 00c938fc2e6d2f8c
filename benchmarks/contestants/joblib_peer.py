"""joblib: automatic batching, and memory-mapped arguments; two workers kept by the context manager."""

from __future__ import annotations

import turns
import work
from joblib import Parallel, delayed


def main() -> None:
    with Parallel(n_jobs=2, mmap_mode="r") as parallel:
        parallel(delayed(work.noop)(i) for i in range(8))
        turns.serve(
            {
                "map": lambda n: turns.mapped(
                    lambda count: list(parallel(delayed(work.square)(x) for x in range(count))), n
                ),
                "payload": lambda size, n: turns.payload(
                    lambda array: parallel([delayed(work.total)(array)])[0], size, n
                ),
                "returned": lambda size, n: turns.returned(
                    lambda count: parallel([delayed(work.full)(count)])[0], size, n
                ),
            }
        )


if __name__ == "__main__":
    main()
