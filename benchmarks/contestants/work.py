"""What is run remotely, the same for everybody."""

from __future__ import annotations

from typing import Any


def noop(x: Any = None) -> None:
    return None


def square(x: int) -> int:
    return x * x + 1


def total(array: Any) -> float:
    return float(array.sum())


def full(size: int) -> Any:
    import numpy as np

    return np.full(size // 8, 2.5)
