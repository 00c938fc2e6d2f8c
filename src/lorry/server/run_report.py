"""What people are shown of a run: its row, what its attempt says, and what training has written. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorry.ids import call_name
from lorry.model.run import UNDER_WAY, AttemptRecord, RunRecord, RunState
from lorry.server.run_files import Progress

TAIL = 64 << 10
"""Bytes of metrics.jsonl in which the newest row is looked for."""
MOST_METRICS = 32 << 20
"""Bytes of it that are looked at for a curve: the newest."""
MOST_ROW = 4096
"""Bytes of a row that is passed on."""
MOST_POINTS = 10_000
_FRAMES = 12
_MOST_TEXT = 16_384


def info(
    run: RunRecord, folder: Path, progress: Progress | None, tail: bytes, *, attempted: bool = False
) -> dict[str, Any]:
    """RunInfo. `progress`: the last that was heard of it. `step` is where the run would go on, or, while it runs, where
    it is. `attempted`: a container works on it. One that was cancelled, or is past its deadline, has the phase "saving"
    as long as that is so."""
    saving = attempted and run.state not in UNDER_WAY
    said = progress if progress is not None and progress.token == run.token else None
    running = said if run.state is RunState.RUNNING or saving else None
    pace = said.seconds_per_step if said and said.seconds_per_step > 0 else None
    step = running.step if running else run.head_step or 0
    left = running.total - step if running and running.total is not None else None
    rows = [row for row in _rows(tail) if "checkpoint" not in row]
    return {
        "run_id": run.run_id,
        "app_id": run.app_id,
        "app_name": run.app_name,
        "function": run.tag,
        "call": call_name(run.call),
        "state": run.state.value,
        "step": step,
        "total_steps": said.total if said else None,
        "head_step": run.head_step,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "attempts": run.attempts,
        "slices": run.slices,
        "interruptions": run.interruptions,
        "seconds_per_step": pace,
        "eta": max(0, left) * pace if left is not None and pace is not None else None,
        "metrics": rows[-1] if rows else None,
        "error": run.error,
        "folder": str(folder),
        "phase": "saving" if saving else _phase(run.state, running),
    }


def _phase(state: RunState, said: Progress | None) -> str | None:
    if state not in UNDER_WAY:
        return None
    return said.phase if said else state.value


def attempt_rows(attempts: Iterable[AttemptRecord]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(attempt) for attempt in attempts]


def history(content: bytes, points: int) -> dict[str, Any]:
    """{"checkpoints", "metrics"}: all checkpoints, and at most so many rows, evenly, the first and the last among
    them."""
    checkpoints, metrics = [], []
    for row in _rows(content):
        made = row.get("checkpoint")
        if isinstance(made, dict):
            checkpoints.append(_checkpoint(made, row.get("time")))
        else:
            metrics.append(row)
    return {"checkpoints": checkpoints[-MOST_POINTS:], "metrics": thinned(metrics, points)}


def _checkpoint(made: dict[str, Any], created_at: Any) -> dict[str, Any]:
    names = {name: name for name in ("step", "stall", "persist", "new_bytes", "manifest")} | {"total_bytes": "bytes"}
    return {"created_at": created_at} | {name: made.get(theirs) for name, theirs in names.items()}


def thinned(rows: list[Any], points: int) -> list[Any]:
    points = min(points, MOST_POINTS)
    if len(rows) <= points:
        return rows
    if points < 2:
        return rows[len(rows) - points :]
    last = len(rows) - 1
    return [rows[place * last // (points - 1)] for place in range(points)]


def _rows(content: bytes) -> list[dict[str, Any]]:
    """Those of its lines that are rows. The first may be the end of one."""
    found = []
    for line in content.splitlines():
        if len(line) > MOST_ROW:
            continue
        try:
            row = json.loads(line, parse_constant=str)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found


def kept(run: RunRecord) -> str:
    """For whoever reads that it has ended."""
    if run.head_step is None:
        return f"It has no checkpoint; `lorry runs resume {run.run_id}` starts it again"
    return f"Its checkpoint of step {run.head_step:,} is kept: lorry runs resume {run.run_id}"


def span(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:g} s"


def failure_text(payload: bytes) -> str:
    """A failed result as a person reads it: a traceback, or the platform's own sentence."""
    try:
        plain = json.loads(payload)
        if "message" in plain:
            return str(plain["message"])[:_MOST_TEXT]
        lines = [f'  File "{frame["file"]}", line {frame["line"]}, in {frame["name"]}' for frame in plain["frames"]]
        header = ["Traceback (most recent call last):"] if lines else []
        last = f"{plain['type_name']}: {plain['text']}".removesuffix(": ")
        return "\n".join([*header, *lines[-_FRAMES:], last])[-_MOST_TEXT:]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "it ended with a failure that cannot be shown here"
