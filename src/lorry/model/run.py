"""Training runs: what a resumable function makes of each of its inputs, and the attempts at one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    """Between two attempts: its input is queued."""
    DONE = "done"
    FAILED = "failed"
    """With an exception, or because it may not be tried again. Its checkpoints stay: it can be resumed."""
    CANCELLED = "cancelled"
    """Its checkpoints stay too."""


UNDER_WAY = (RunState.RUNNING, RunState.WAITING)
RESUMABLE = (RunState.FAILED, RunState.CANCELLED)


class AttemptEnd(StrEnum):
    CONTINUE = "continue"
    """Its slice was over, or the platform wanted the container; everything was saved."""
    FINISHED = "finished"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    KILLED = "killed"
    """Its container died, whoever killed it."""


INTERRUPTIONS = (AttemptEnd.ERROR, AttemptEnd.TIMEOUT, AttemptEnd.KILLED)
"""Ends that nobody could plan for: what was done since the last checkpoint is done again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    run_id: str
    app_id: str
    """Of the app that runs it now: `lorry runs resume` makes it another one."""
    app_name: str
    tag: str
    function: int
    call: bytes
    chunk: int
    """With the call: the input that it is."""
    state: RunState
    created_at: float
    since: float
    """When it was begun or, later, resumed: its deadline counts from here."""
    folder: str
    """Of its files, below the folder of all runs."""
    finished_at: float | None = None
    token: int = 0
    """Of the newest attempt. Only that one can move the head."""
    head_manifest: str | None = None
    head_step: int | None = None
    head_token: int | None = None
    """The newest committed checkpoint, and the attempt that made it."""
    attempts: int = 0
    tries: int = 0
    """Attempts since it was begun or resumed: `max_attempts` counts these."""
    slices: int = 0
    """Attempts that ended with CONTINUE."""
    interruptions: int = 0
    seconds: float = 0.0
    """That attempts have taken, together."""
    error: str = ""
    """What went wrong last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One container's work on a run."""

    run_id: str
    token: int
    container_id: str
    started_at: float
    first_step: int | None = None
    """Where it went on: the head's step when it began."""
    ended_at: float | None = None
    last_step: int | None = None
    """That it reported, saved or not."""
    ended: AttemptEnd | None = None
    reason: str = ""
