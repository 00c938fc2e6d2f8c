"""`lorry.Resumable`: how a function's inputs survive the end of their containers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lorry.errors import InvalidError
from lorry.model.function import ResumePolicy
from lorry.sdk import options as opt


class Resumable:
    """`@app.function(timeout=900, resumable=lorry.Resumable(…))`: slices of 15 minutes, until the run is done.

    `every`: how often to save; "auto" works it out from what a checkpoint costs, otherwise steps (200) or a time
    ("5m"). `keep_last` checkpoints are kept, and of each `keep_every` the first (None: no others). An attempt that is
    asked to end has `grace` to save. The run ends after `max_attempts`, or `deadline` after its first one began.
    Times are seconds, or texts such as "30s", "1h".
    """

    def __init__(
        self,
        *,
        every: str | int = "auto",
        grace: float | str = 30,
        keep_last: int = 2,
        keep_every: float | str | None = "1h",
        max_attempts: int = 1000,
        deadline: float | str | None = None,
    ) -> None:
        counts = {"keep_last": keep_last, "max_attempts": max_attempts}
        for name, value in counts.items():
            if opt.count(counts, name, 1) is None:
                raise InvalidError(f"{name}={value!r} must be a whole number of at least 1")
        self.policy = ResumePolicy(
            every=_every(every),
            grace=opt.seconds(grace, "grace"),
            keep_last=keep_last,
            keep_every=None if keep_every is None else opt.seconds(keep_every, "keep_every"),
            max_attempts=max_attempts,
            deadline=None if deadline is None else opt.seconds(deadline, "deadline"),
        )

    def __repr__(self) -> str:
        p = self.policy
        return (
            f"Resumable(every={p.every!r}, grace={p.grace}, keep_last={p.keep_last}, keep_every={p.keep_every}, "
            f"max_attempts={p.max_attempts}, deadline={p.deadline})"
        )


def _every(value: Any) -> str:
    """In the text form of the policy. InvalidError for what `lorry.run(every=…)` would refuse."""
    if isinstance(value, str) and not value.isdecimal():
        if value != "auto":
            opt.seconds(value, "every")
        return value
    steps = int(value) if isinstance(value, str) else value
    if type(steps) is int and steps > 0:
        return str(steps)
    raise InvalidError(f'every={value!r}: give "auto", a number of steps such as 200, or a time such as "5m"')


def resume_policy(value: Any) -> ResumePolicy | None:
    """Of `resumable=`."""
    if value is None or value is False:
        return None
    if value is True:
        return Resumable().policy
    if isinstance(value, Resumable):
        return value.policy
    raise InvalidError(f"resumable={value!r} must be True, False or a lorry.Resumable(…)")


def check_resumable(raw: Callable[..., Any], given: Mapping[str, Any], marks: Mapping[str, Any]) -> None:
    """InvalidError for what cannot be a run: one input of a plain function, in a process of its own."""
    if resume_policy(given.get("resumable")) is None:
        return
    name = getattr(raw, "__name__", "the function")
    if given.get("is_generator") or inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw):
        problem = (
            "is a generator, and the values that it has given cannot be taken back: note them with run.step(loss=…), "
            "and return the result"
        )
    elif inspect.iscoroutinefunction(raw):
        problem = "is async: write `def` instead of `async def`, and run its coroutines with asyncio.run inside"
    elif "concurrent" in marks:
        problem = "has @lorry.concurrent, but each run has a container of its own: leave that out"
    elif given.get("retries") is not None:
        problem = "has retries=, but a run is tried again as long as it makes progress: leave that out"
    elif given.get("restrict_access") or given.get("restrict_modal_access"):
        problem = "has restrict_access=True, but a run tells the server of its checkpoints: leave one of them out"
    else:
        return
    raise InvalidError(f"@app.function(resumable=…): {name} {problem}")
