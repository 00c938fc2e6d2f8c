"""Runs the attacks in the tiers of this machine, and puts what is seen beside what is expected."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorry.sandbox import detect
from lorry.sandbox.interface import Feature
from lorry.sandbox.landlock import scopes_signals
from lorry.sandbox.limits import NoLimits, find_limits
from lorry.security.attacks import ATTACKS, COLUMNS, HERE, Attack, Verdict, column
from lorry.security.ground import Ground

ALL_GROUPS = frozenset(Feature)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    verdict: Verdict
    measured: bool
    """False: the word of the test suite, not of a run on this machine."""
    wrong: bool = False
    """Measured, and worse than expected."""


def measure(tier: str, attacks: Sequence[Attack] = ATTACKS) -> dict[str, Verdict]:
    """Attack → verdict, from real runs, in seconds. Blocking; needs a tier that works. The tier `process` runs without
    control groups: they would hold back its bombs."""
    limits = NoLimits() if tier == HERE else find_limits()
    sandbox = detect.choose(tier, limits)
    with tempfile.TemporaryDirectory(prefix="lorry-attacks-") as folder:
        return asyncio.run(Ground(sandbox, Path(folder), limits.features).run(attacks))


def table(measured: dict[str, dict[str, Verdict]]) -> list[tuple[Attack, dict[str, Cell]]]:
    """`measured`: tier → its verdicts. A row for each attack with a cell for each column; columns that no run here
    fills are filled with what the suite proves, on a machine with control groups."""
    groups = find_limits().features
    return [(attack, {title: _cell(attack, title, measured, groups) for title in COLUMNS}) for attack in ATTACKS]


def _cell(attack: Attack, title: str, measured: dict[str, dict[str, Verdict]], groups: frozenset[Feature]) -> Cell:
    tier, _, user = title.partition(" ")
    if tier in measured and title == column(tier):
        verdict = measured[tier][attack.name]
        promised = attack.expected(tier, groups=groups, root=os.geteuid() == 0, scopes=scopes_signals())
        return Cell(verdict=verdict, measured=True, wrong=is_worse(verdict, promised))
    return Cell(verdict=attack.expected(tier, groups=ALL_GROUPS, root=user == "(root)"), measured=False)


def is_worse(verdict: Verdict, promised: Verdict) -> bool:
    order = (Verdict.STOPPED, Verdict.SOFT, Verdict.NOT_STOPPED)
    return verdict in order and order.index(verdict) > order.index(promised)
