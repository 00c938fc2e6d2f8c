"""Series of figures, ratios of them, and whether a budget is met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


@dataclass
class Series:
    """One contestant's figures in one measure: one value per round, and all samples behind them."""

    unit: str
    rounds: dict[int, float] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    first: float | None = None
    """The very first call, cold; for payloads."""

    def add(self, turn: int, answer: Mapping[str, Any]) -> None:
        """An answer of a contestant: {"samples": […]} or {"value": …}, maybe {"first": …}."""
        if self.first is None:
            self.first = answer.get("first")
        samples = answer.get("samples")
        self.rounds[turn] = statistics.median(samples) if samples else answer["value"]
        self.samples += samples or []

    @property
    def median(self) -> float:
        return statistics.median(self.rounds.values())

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.rounds.values()), max(self.rounds.values())

    @property
    def p99(self) -> float | None:
        return percentile(self.samples, 99) if len(self.samples) >= 100 else None

    def plain(self) -> dict[str, Any]:
        """For JSON: every round's figure, so that other statistics can be made later."""
        low, high = self.spread
        found = {
            "unit": self.unit,
            "median": self.median,
            "min": low,
            "max": high,
            "rounds": list(self.rounds.values()),
        }
        return found | {"p99": self.p99, "samples": len(self.samples), "first": self.first}


def ratio(ours: Series, theirs: Series) -> float:
    """ours ÷ theirs: the median over the rounds that both took part in; of the medians if there is none."""
    both = ours.rounds.keys() & theirs.rounds.keys()
    if not both:
        return ours.median / theirs.median
    return statistics.median(ours.rounds[turn] / theirs.rounds[turn] for turn in both)


@dataclass(frozen=True)
class Budget:
    """A promise of the design: Lorry's figure, against a peer's (`times` its figure) or absolute (`peer` None)."""

    text: str
    measure: str
    limit: float
    peer: str | None = None
    peer_measure: str | None = None
    """Where the peer's figure is, if not under `measure`."""
    at_least: bool = False
    """A rate: more is better. Otherwise a time or a size."""
    statistic: str = "median"
    name: str = "Lorry"


@dataclass(frozen=True)
class Verdict:
    """One row of the table of budgets."""

    budget: Budget
    ours: float
    theirs: float | None
    found: float
    """The ratio, or the absolute figure."""
    unit: str

    @property
    def met(self) -> bool:
        return self.found >= self.budget.limit if self.budget.at_least else self.found <= self.budget.limit

    @property
    def words(self) -> str:
        """`met, 1.8 x to spare` or `MISSED by 2.1 x`."""
        if self.found <= 0 or self.budget.limit <= 0:
            return "met" if self.met else "MISSED"
        share = self.found / self.budget.limit if self.budget.at_least else self.budget.limit / self.found
        return f"met, {share:.1f} x to spare" if self.met else f"MISSED by {1 / share:.1f} x"


def judge(budget: Budget, series: Mapping[str, Mapping[str, Series]]) -> Verdict | None:
    """None if one of the figures is missing."""
    ours = series.get(budget.measure, {}).get(budget.name)
    if ours is None:
        return None
    figure = ours.median if budget.statistic == "median" else getattr(ours, budget.statistic)
    if figure is None:
        return None
    if budget.peer is None:
        return Verdict(budget, figure, None, figure, ours.unit)
    theirs = series.get(budget.peer_measure or budget.measure, {}).get(budget.peer)
    if theirs is None:
        return None
    found = ratio(ours, theirs) if budget.statistic == "median" else figure / theirs.median
    return Verdict(budget, figure, theirs.median, found, ours.unit)
