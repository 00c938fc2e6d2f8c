"""The floor of every payload: one memcpy into memory that is mapped already."""

from __future__ import annotations

from typing import Any

import numpy as np
import turns


def copied(size: int, n: int, summed: bool = False) -> dict[str, Any]:
    source, target = np.full(size // 8, 1.5), np.zeros(size // 8)
    times = []
    for _ in range(n + 1):
        began = turns.now()
        np.copyto(target, source)
        if summed:
            target.sum()
        times.append((turns.now() - began) * 1e3)
    return {"first": times[0], "samples": times[1:]}


if __name__ == "__main__":
    turns.serve(
        {
            "payload": copied,
            "returned": copied,
            "copied_and_summed": lambda size, n: copied(size, n, summed=True),
        }
    )
