"""`lorry config`: every setting, its value, and where that came from."""

from __future__ import annotations

import dataclasses
import os
import tomllib

import typer

from lorry import config
from lorry.cli import tables

commands = typer.Typer(add_completion=False)


@commands.command("config")
def show(as_json: tables.AsJson = False) -> None:
    """Every setting, its value and where it came from: environment, file or default."""
    settings = config.resolve()
    file = config.config_file()
    in_file = tomllib.loads(file.read_text()).keys() if file.is_file() else ()
    rows = []
    for field in dataclasses.fields(settings):
        variable = f"LORRY_{field.name.upper()}"
        source = variable if os.environ.get(variable) else str(file) if field.name in in_file else "default"
        rows.append({"setting": field.name, "value": getattr(settings, field.name), "from": source, "env": variable})
    columns: list[tables.Column] = [
        ("SETTING", "setting"),
        ("VALUE", lambda row: str(row["value"]) or '""'),
        ("FROM", "from"),
    ]
    tables.show(rows, columns, as_json=as_json, empty="")
    if not as_json:
        state = "" if file.is_file() else " (does not exist)"
        print(f"\nFile: {file}{state}; variables: LORRY_ and the setting's name in capitals.")
