"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    rounds: int = 7
    quick: bool = False
    """A smoke test: everything once or twice, small. Its figures mean nothing."""

    def count(self, full: int, quick: int) -> int:
        return quick if self.quick else full
