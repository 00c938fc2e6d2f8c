"""Lists: aligned columns for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

Row = Mapping[str, Any]
Column = tuple[str, str | Callable[[Row], str]]
"""Heading, and the key of the value or how to make it."""
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show(rows: Sequence[Row], columns: Sequence[Column], *, as_json: bool, empty: str) -> None:
    """`empty` is said in place of a table without rows."""
    if as_json:
        show_json(list(rows))
    elif not rows:
        print(empty)
    else:
        print("\n".join(lines(rows, columns)))


def lines(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Headings and rows."""
    return aligned([[heading for heading, _ in columns], *([_cell(row, c) for _, c in columns] for row in rows)])


def show_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def aligned(lines: Iterable[Sequence[str]]) -> list[str]:
    """Columns two spaces apart; the last one has no padding."""
    table = [list(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def _cell(row: Row, column: str | Callable[[Row], str]) -> str:
    value = row.get(column) if isinstance(column, str) else column(row)
    return "" if value is None else str(value)
