"""A run in a line: on the screen while it trains, and as text in a pipe. `info` is the server's RunInfo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from lorry.cli import units
from lorry.cli.curves import bar, number

ACTIVE = ("running", "waiting")
OF_THE_PLATFORM = ("step", "time", "checkpoint")
"""In a row of metrics.jsonl: everything else is the user's."""
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
LARGEST = 1 << 63
"""Of whole numbers: others are no floats any more."""
BAR = 24
SHORTEST_BAR = 8
MANIFEST_ONLY = "manifest only"
"""In place of the size of a checkpoint without tensors, arrays and bytes: numbers and texts lie in its manifest."""
PREFIX = len("ru-") + 8
"""Of a run's id, on a terminal. Commands take any prefix that is unique."""

Info = Mapping[str, Any]


def short(run_id: str, others: Sequence[str] = ()) -> str:
    """As much of the id as tells it from the others."""
    length = PREFIX
    while length < len(run_id) and any(o != run_id and o.startswith(run_id[:length]) for o in others):
        length += 1
    return run_id[:length]


def is_active(info: Info) -> bool:
    """One that was cancelled is until it has saved."""
    return info["state"] in ACTIVE or info["phase"] == "saving"


def how_to_go_on(info: Info) -> str:
    """What to say of a run that stands still; empty if there is nothing to go on with, or its error says it."""
    run_id = info["run_id"]
    if f"lorry runs resume {run_id}" in (info["error"] or ""):
        return ""
    match info["state"]:
        case "cancelled" | "failed" as state:
            word = "stopped" if state == "cancelled" else "failed"
            place = f" at step {info['head_step']:,}" if info["head_step"] else ""
            return f"{run_id} {word}{place}; go on with: lorry runs resume {run_id}"
        case "running" | "waiting":
            return f"{run_id} is not over yet: lorry runs show {run_id} -f"
    return ""


# Parts


def headline(metrics: Mapping[str, Any] | None) -> tuple[str, float] | None:
    """The metric that stands for all: the last one called loss (`eval_loss`, `loss`), else the first number."""
    said = {name: figure(value) for name, value in (metrics or {}).items() if _is_users(name)}
    numbers = {name: value for name, value in said.items() if value is not None}
    if "loss" in numbers:
        return "loss", numbers["loss"]
    named = [name for name in numbers if "loss" in name.lower()]
    name = named[-1] if named else next(iter(numbers), None)
    return None if name is None else (name, numbers[name])


def is_number(value: object) -> TypeGuard[float]:
    """Rows are what a container has written: they may have anything in them."""
    return isinstance(value, float) or (type(value) is int and abs(value) < LARGEST)


def figure(value: object) -> float | None:
    """A metric's value. JSON has no NaN and no infinity: they come as texts."""
    if isinstance(value, str) and value in NOT_FINITE:
        return float(value)
    return float(value) if is_number(value) else None


def _is_users(name: str) -> bool:
    return name not in OF_THE_PLATFORM and name.isprintable()


def step(info: Info) -> int:
    """What it reports may be a second old: a checkpoint can be newer."""
    return max(info["step"] or 0, info["head_step"] or 0)


def steps(info: Info) -> str:
    """`1,200/5,000`, or `1,200` where nobody knows the end."""
    total = info["total_steps"]
    return f"{step(info):,}" + (f"/{total:,}" if total else "")


def fraction(info: Info) -> float | None:
    total = info["total_steps"]
    return min(1.0, step(info) / total) if total else None


def percent(info: Info) -> str:
    part = fraction(info)
    return "" if part is None else f"{int(part * 100)} %"  # 100 % is when it is done


def speed(info: Info) -> str:
    seconds = info["seconds_per_step"]
    if not seconds:
        return ""
    rate, unit = (1 / seconds, "steps/s") if seconds < 1 else (seconds, "s/step")
    return f"{rate:.1f} {unit}" if rate < 10 else f"{rate:,.0f} {unit}"


def left(info: Info) -> str:
    eta = info["eta"]
    return units.about(eta) if eta is not None and is_active(info) else ""


def doing(info: Info) -> str:
    """What keeps it from training now; empty while it trains."""
    if info["state"] == "waiting":
        return "waits for a container"
    words = {"restoring": "loads its checkpoint", "saving": "saves", "waiting": "outside of steps"}
    return words.get(info["phase"], "") if is_active(info) else str(info["state"])


def last_line(text: str) -> str:
    """Of a traceback it says what happened."""
    return text.rstrip().rpartition("\n")[2]


# Lines


def screen_line(info: Info, name: str, columns: int, *, drawn: bool) -> str:
    """`train  step 1,200/5,000 ▕███▌    ▏ 24 %  loss 1.234  3.1 steps/s  ETA 20 min  slice 3`.

    What does not fit is left out, from the end."""
    start = f"{name}  step {steps(info)}"
    parts = _parts(info, "ETA {}")
    part = fraction(info)
    fixed = len(start) if part is None else len(f"{start} {percent(info)}") + SHORTEST_BAR + 1
    while parts and fixed + sum(len(p) + 2 for p in parts) > columns:
        parts.pop()
    room = columns - len("  ".join([start, *parts])) - len(f" {percent(info)}")
    if part is not None and room > SHORTEST_BAR:
        start += f" {bar(part, min(BAR, room - 1), drawn=drawn)} {percent(info)}"
    elif part is not None and room >= 0:
        start += f" {percent(info)}"
    return "  ".join([start, *parts])[:columns]


def pipe_line(info: Info) -> str:
    """`train: step 1,200/5,000 (24 %), loss 1.234, 3.1 steps/s, about 20 min left, slice 3`."""
    share = f" ({percent(info)})" if percent(info) else ""
    return ", ".join([f"{info['function']}: step {steps(info)}{share}", *_parts(info, "about {} left")])


def _parts(info: Info, time_left: str) -> list[str]:
    found = headline(info["metrics"])
    parts = [
        doing(info),
        f"{found[0]} {number(found[1])}" if found else "",
        speed(info),
        time_left.format(left(info)) if left(info) else "",
        f"slice {info['slices'] + 1}" if info["slices"] else "",
    ]
    return [part for part in parts if part]
