"""When to save, when to yield, what to keep. Pure: time and measurements are arguments.

Frequency after Young (1974) and Daly (2006): with a stall of C seconds per checkpoint and one interruption every mu
seconds, C/W + W/(2·mu) is least at W = √(2·C·mu). A known time limit is no interruption: it adds one final save.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorry.errors import InvalidError

HOUR = 3600.0
PRIOR_COUNT, PRIOR_SECONDS = 1.0, 24 * HOUR
"""Gamma prior of the rate of interruptions: as if one had been seen in 24 hours, which suits a machine of one's own."""
_UNITS = {"s": 1.0, "m": 60.0, "h": HOUR, "d": 24 * HOUR}


# How often


@dataclass(frozen=True, slots=True)
class Every:
    """How often the user wants a checkpoint. Neither: Lorry works it out."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: object) -> Every:
        """ "auto", a number of steps (also as a text), or a time such as "5m"."""
        if value == "auto":
            return cls()
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if type(value) is int and value > 0:
            return cls(steps=value)
        if isinstance(value, str):
            return cls(seconds=seconds(value, "every"))
        raise InvalidError(f'every={value!r}: give "auto", a number of steps such as 200, or a time such as "5m"')


def seconds(value: str, name: str) -> float:
    """ "90s", "5m" or "1h30m" in seconds."""
    text = str(value).replace(" ", "")  # who gives a number is told too
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidError(f'{name}={value!r}: give a time such as "90s", "5m" or "1h30m"')
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if total <= 0:
        raise InvalidError(f"{name}={value!r} must be more than 0 seconds")
    return total


def mean_seconds_to_interruption(interruptions: int, observed: float) -> float:
    """Mean of the posterior after `interruptions` in `observed` seconds of training."""
    return (PRIOR_SECONDS + observed) / (PRIOR_COUNT + interruptions)


def interval(stall: float, to_interruption: float, *, persist: float, step: float) -> float:
    """Seconds between two checkpoints: Young's, but not shorter than writing one or than one step takes."""
    return max(math.sqrt(2 * stall * to_interruption), persist, step)


# When to yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds that are nearly always enough: 99th percentiles."""

    start: float
    """From the begin of a slice to its first step: process, imports, restore."""
    step: float
    stall: float
    persist: float
    """Of the bytes that are new, at the low end of the measured rates."""
    exit: float


@dataclass(frozen=True, slots=True)
class Decision:
    yes: bool
    reason: str


MARGIN, LEAST_MARGIN = 0.02, 2.0


def margin(limit: float) -> float:
    """For what no estimate knows: a share of the slice, or seconds."""
    return max(LEAST_MARGIN, MARGIN * limit)


def needed(limit: float, costs: Costs) -> float:
    """Seconds before the end of a slice at which the last step but one must have ended: one more and its save fit."""
    return costs.step + costs.stall + costs.persist + costs.exit + margin(limit)


def must_yield(left: float, limit: float, costs: Costs) -> Decision:
    """Whether to save and stop at this safe point, `left` seconds before the end of a slice of `limit` seconds:
    there is time for one more step only if a save fits after it."""
    least = needed(limit, costs)
    if left < least:
        return Decision(True, f"{left:.1f} s are left, and one more step with its save may take {least:.1f} s")
    return Decision(False, f"{left:.1f} s are left; the last step must begin {least:.1f} s before the end")


def can_progress(limit: float, costs: Costs) -> Decision:
    """Whether a slice has room for one step and one save; by the same estimate as `must_yield`."""
    least = costs.start + needed(limit, costs)
    arithmetic = (
        f"start {costs.start:.1f} s + step {costs.step:.1f} s + save {costs.stall + costs.persist:.1f} s + exit "
        f"{costs.exit:.1f} s + margin {margin(limit):.1f} s = {least:.1f} s"
    )
    if least > limit:
        return Decision(False, f"A slice of {limit:.1f} s cannot make one step and save it: {arithmetic}")
    return Decision(True, f"One step fits into a slice of {limit:.1f} s: {arithmetic}")


def shortest(costs: Costs) -> float:
    """Seconds of the shortest slice that has room for one step and one save."""
    sure = costs.start + needed(0.0, costs)
    return sure if margin(sure) == margin(0.0) else (sure - margin(0.0)) / (1 - MARGIN)


def nearly_always(samples: Sequence[float]) -> float:
    """A time that 99 of 100 stay under: the percentile, or mean + 3 sigma until there are 20 samples."""
    if not samples:
        return 0.0
    if len(samples) < 20:
        return statistics.fmean(samples) + 3 * statistics.pstdev(samples)
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)]


# What to keep


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint in the eyes of retention."""

    manifest: str
    step: int
    created_at: float


def retained(checkpoints: Iterable[Kept], *, keep_last: int, keep_every: float | None) -> list[Kept]:
    """The newest `keep_last`, and of each `keep_every` seconds the first; oldest first. What was dropped once is
    never wanted later: pass what this returned before, and the new one."""
    ordered = list(checkpoints)
    wanted = set(range(len(ordered))[-keep_last:])
    if keep_every is not None:
        first: dict[int, int] = {}
        for place, checkpoint in enumerate(ordered):
            first.setdefault(int(checkpoint.created_at // keep_every), place)
        wanted |= set(first.values())
    return [checkpoint for place, checkpoint in enumerate(ordered) if place in wanted]
