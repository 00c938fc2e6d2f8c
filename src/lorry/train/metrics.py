"""What training reports of itself: one JSON object per line, keyed by step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lorry.errors import InvalidError
from lorry.storage.atomic import FULL_DISK
from lorry.train import files

FLUSH_SECONDS = 1.0
FLUSH_ROWS = 500
RESERVED = ("step", "time")
MOST_LINE = 16 << 20
"""Bytes. A longer one is no row: after a crash of the machine a file may have a hole without an end of a line."""
NEAR = 64 << 10
"""Bytes that are read line by line: a run of days has hundreds of millions."""


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
        if len(self._rows) % FLUSH_ROWS == 0:
            self.flush()

    def flush(self) -> None:
        """Rows for which the disk has no room wait for the next time: they are no reason to end a training."""
        if not self._rows:
            return
        lines = (_line({"step": step, "time": round(time, 3), **values}) for step, time, values in self._rows)
        try:
            _append(self.path, "".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
        else:
            self._rows = []

    def cut_back(self, step: int) -> None:
        """Forget the rows of later steps, which are going to be done again, and a line that a crash cut short. That of
        a checkpoint was written some steps after it: those of this step and before stay."""
        self._rows = []
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            end = _end_of(file, step)
            file.seek(end)
            kept = [{**row, "step": step} for row in map(_row, _lines(file)) if _made_at(row) <= step]
            file.truncate(end)
            file.seek(end)
            file.writelines(f"{_line(row)}\n".encode() for row in kept)


def _end_of(file: BinaryIO, step: int) -> int:
    """Where the rows of later steps begin. Rows are in order of their steps."""
    low, high = 0, file.seek(0, os.SEEK_END)
    while high - low > NEAR:
        middle = (low + high) // 2
        file.seek(middle)
        start = middle + len(file.readline(MOST_LINE))
        if start < high and _step_of(_row(file.readline(MOST_LINE))) <= step:
            low = start
        else:
            high = middle
    file.seek(low)
    for line in _lines(file):
        if not line.endswith(b"\n") or _step_of(_row(line)) > step:
            break
        low += len(line)
    return low


def _lines(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.readline(MOST_LINE), b"")


def _append(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            files.write(file.fileno(), memoryview(content))
        except OSError:
            file.truncate(before)
            raise


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


def _line(row: dict[str, Any]) -> str:
    """JSON has no NaN and no infinity: they are the texts "NaN", "Infinity" and "-Infinity", as in protobuf's JSON."""
    try:
        return json.dumps(row, default=_fetched, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(row, default=_fetched), parse_constant=str))


def _fetched(value: Any) -> Any:
    """From the GPU."""
    return value.tolist()


def _row(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _step_of(row: Any) -> float:
    """After all others, if it is no row."""
    try:
        return float(row["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _made_at(row: Any) -> float:
    """The step of the checkpoint that a row tells of; after all others for other rows."""
    return _step_of(row.get("checkpoint")) if isinstance(row, dict) else float("inf")
