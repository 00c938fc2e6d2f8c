"""What training reports of itself: one JSON object per line, keyed by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorry.errors import InvalidError

FLUSH_SECONDS = 1.0
FLUSH_ROWS = 500
RESERVED = ("step", "time")


class MetricsLog:
    """Rows wait in memory and are written together. A row that a crash loses belongs to a step that is done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[tuple[int, float, dict[str, Any]]] = []

    def add(self, step: int, time: float, values: dict[str, Any]) -> None:
        for name in RESERVED:
            if name in values:
                raise InvalidError(f"run.step({name}=…): the row has that already; give your metric another name")
        self._rows.append((step, time, {name: _held(name, value) for name, value in values.items()}))
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        lines = (
            json.dumps({"step": step, "time": round(time, 3), **values}, default=_fetched)
            for step, time, values in rows
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def cut_back(self, step: int) -> None:
        """Forget the rows of later steps, which are going to be done again, and a line that a crash cut short."""
        self._rows = []
        if not self.path.exists():
            return
        end = 0
        with self.path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n") or _step_of(line) > step:
                    break
                end += len(line)
            file.truncate(end)


def _held(name: str, value: Any) -> Any:
    """The value as it is now. One on a GPU is fetched only when rows are written: fetching waits for the GPU."""
    if type(value) in (int, float, str, bool) or value is None:
        return value
    if getattr(value, "is_cuda", False):
        return value.detach().clone()
    if hasattr(value, "tolist"):
        return value.tolist()
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as e:
        raise InvalidError(f"run.step({name}=…) got a {type(value).__qualname__}: give numbers or texts") from e


def _fetched(value: Any) -> Any:
    """From the GPU."""
    return value.tolist()


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
