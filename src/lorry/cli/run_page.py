"""`lorry runs show`: one run on a page. Pure: `run` is the server's answer to run_show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from lorry.cli import run_words, tables, units
from lorry.cli.curves import Points, chart
from lorry.cli.run_words import Info

LAST = 10
"""Attempts and checkpoints that are shown, of each."""
ROWS = 6
"""Height of a curve."""
SPANS = 50
"""Of the throughput: the times of single steps are noise."""
SIDE_BY_SIDE = 70
"""Columns from which on the two curves have room beside each other."""
GAP = 3


def page(run: Info, *, columns: int, drawn: bool, now: float, last: int = LAST) -> list[str]:
    """Everything there is to see, in lines. Only tables and texts of the user may be wider than `columns`."""
    rows = _rows(run)
    parts = [
        _header(run, now),
        [run_words.screen_line({**run, "metrics": last_row(run)}, run["function"], columns, drawn=drawn)],
        _curves(rows, columns, drawn=drawn),
        _attempts(run, last, now),
        _checkpoints(run["checkpoints"], last, now),
        _error(run),
        [run_words.how_to_go_on(run)] if not run_words.is_active(run) else [],
    ]
    return list(itertools.chain(*([*part, ""] for part in parts if any(part))))[:-1]


def _rows(run: Info) -> list[dict[str, Any]]:
    return [row for row in run["metrics"] if run_words.is_number(row["step"]) and run_words.is_number(row.get("time"))]


def last_row(run: Info) -> dict[str, Any] | None:
    rows = _rows(run)
    return rows[-1] if rows else None


def fitting(run: Info, *, columns: int, rows: int, drawn: bool, now: float) -> list[str]:
    """The page on a screen of so many rows: first the tables get shorter, then it is cut."""
    for last in range(LAST, 0, -1):
        lines = page(run, columns=columns, drawn=drawn, now=now, last=last)
        if len(lines) <= rows:
            return lines
    return lines[:rows]


def _header(run: Info, now: float) -> list[str]:
    began = f"{units.moment(run['created_at'])} ({units.ago(run['created_at'], now)})"
    over = run["finished_at"]
    took = f", took {units.about(over - run['created_at'])}" if over else ""
    pairs = [
        ("app", f"{run['app_name']} ({run['app_id']})"),
        ("call", run["call"]),
        ("began", began + took),
        ("metrics", str(PurePath(run["folder"]) / "metrics.jsonl")),
        ("so far", so_far(run)),
    ]
    return [f"{run['function']}  {run['run_id']}  {run['state']}", *tables.aligned(pairs)]


def so_far(run: Info) -> str:
    """`3 slices, 1 interruption, 4 attempts, checkpoint of step 1,150`."""
    counts = [(run["slices"] + 1, "slice"), (run["interruptions"], "interruption"), (run["attempts"], "attempt")]
    words = [f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts]
    head = run["head_step"]
    return ", ".join([*words, "no checkpoint yet" if head is None else f"checkpoint of step {head:,}"])


# Curves


def _curves(rows: Sequence[dict[str, Any]], columns: int, *, drawn: bool) -> list[str]:
    name, points = loss(rows)
    speeds = throughput(rows)
    if not points and not speeds:
        return []
    beside = columns >= SIDE_BY_SIDE
    width = (columns - GAP) // 2 if beside else columns
    left = chart(name, points, columns=width, rows=ROWS, drawn=drawn)
    right = chart("steps/s", speeds, columns=width, rows=ROWS, drawn=drawn, floor=0.0)
    if not beside:
        return [*left, "", *right]
    both = itertools.zip_longest(left, right, fillvalue="")
    return [f"{one:<{width + GAP}}{other}".rstrip() for one, other in both]


def loss(rows: Sequence[dict[str, Any]]) -> tuple[str, Points]:
    """Name and points of the metric that stands for all."""
    name = next((found[0] for found in map(run_words.headline, reversed(rows)) if found), "loss")
    return name, [(row["step"], said) for row in rows if (said := run_words.figure(row.get(name))) is not None]


def throughput(rows: Sequence[dict[str, Any]]) -> Points:
    """Steps per second in SPANS equal parts, pauses between attempts included. A clock that was set back gives none."""
    pairs = itertools.pairwise(rows[:: max(1, len(rows) // SPANS)])
    return [
        (two["step"], (two["step"] - one["step"]) / (two["time"] - one["time"]))
        for one, two in pairs
        if two["time"] > one["time"] and two["step"] > one["step"]
    ]


# Tables


def _attempts(run: Info, last: int, now: float) -> list[str]:
    rows = run["attempt_rows"]
    lines = [["ATTEMPT", "BEGAN", "LASTED", "STEPS", "ENDED", "WHY"]]
    for row in rows[-last:]:
        seconds = (row["ended_at"] or now) - row["started_at"]
        final = row["last_step"] if row["ended_at"] else run_words.step(run)
        place = f"{row['first_step'] or 0:,}" + ("" if final is None else f"-{final:,}")
        began = units.ago(row["started_at"], now)
        lines.append(
            [str(row["token"]), began, units.about(seconds), place, _ending(row), run_words.last_line(row["reason"])]
        )
    return _table(lines, len(rows) - last if last == LAST else 0)


def _ending(row: Info) -> str:
    if row["ended"] == "continue":
        return "stopped" if row["reason"] else "slice over"
    return row["ended"] or "goes on"


def _checkpoints(rows: Sequence[dict[str, Any]], last: int, now: float) -> list[str]:
    lines = [["CHECKPOINT", "SAVED", "SIZE", "NEW", "STALL", "DURABLE AFTER"]]
    for row in rows[-last:]:
        sizes = [_said(units.size, row[key]) for key in ("total_bytes", "new_bytes")]
        sizes = [run_words.MANIFEST_ONLY, ""] if row["total_bytes"] == 0 else sizes
        times = [_said(units.short_duration, row[key]) for key in ("stall", "persist")]
        saved = _said(lambda moment: units.ago(moment, now), row["created_at"])
        lines.append([_said("step {:,}".format, row["step"]), saved, *sizes, *times])
    return _table(lines, len(rows) - last if last == LAST else 0)


def _said(in_words: Callable[[float], str], value: Any) -> str:
    return in_words(value) if run_words.is_number(value) else "?"


def _table(lines: list[list[str]], earlier: int) -> list[str]:
    more = [f"and {earlier} earlier ones; --json has them"] if earlier > 0 else []
    return [*tables.aligned(lines), *more] if len(lines) > 1 else []


def _error(run: Info) -> list[str]:
    """Of a run that goes on it is that of an attempt before, or what had ended it when it was resumed."""
    if not run["error"] or run["state"] == "done":
        return []
    lines: list[str] = run["error"].rstrip("\n").splitlines()
    if run["state"] not in run_words.ACTIVE:
        return lines
    failed = any(row["reason"] == run["error"] for row in run["attempt_rows"])
    return ["an attempt before this one failed:" if failed else "before it was resumed:", *lines]
