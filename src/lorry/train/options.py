"""What the user chose for a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lorry.errors import InvalidError
from lorry.model.function import ResumePolicy
from lorry.train.policy import Every, seconds

OUTSIDE = ResumePolicy(keep_every=None)
"""For runs outside resumable functions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    every: Every = field(default_factory=Every)
    keep_last: int = 2
    keep_every: float | None = None
    """Seconds."""
    rng: Literal["state", "counter"] = "state"
    seed: int = 0


def options(
    *,
    every: str | int | None,
    keep_last: int | None,
    keep_every: str | None,
    rng: Literal["state", "counter"],
    seed: int,
    policy: ResumePolicy | None,
) -> Options:
    """Arguments of `lorry.run()`; None is what `policy` says."""
    if keep_last is not None and (type(keep_last) is not int or keep_last < 1):
        raise InvalidError(f"keep_last={keep_last!r} must be a number of checkpoints, at least 1")
    if rng not in ("state", "counter"):
        raise InvalidError(f'rng={rng!r} must be "state" or "counter"')
    policy = policy or OUTSIDE
    return Options(
        every=Every.parse(policy.every if every is None else every),
        keep_last=policy.keep_last if keep_last is None else keep_last,
        keep_every=policy.keep_every if keep_every is None else seconds(keep_every, "keep_every"),
        rng=rng,
        seed=seed,
    )
