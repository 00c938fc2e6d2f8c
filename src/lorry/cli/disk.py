"""`lorry df` and `lorry prune`: where the disk went, and getting it back."""

from __future__ import annotations

from typing import Annotated

import typer

from lorry import config
from lorry.cli import asking, tables, units
from lorry.cli.asking import NoState
from lorry.cli.confirm import Yes, confirm

df_command = typer.Typer(add_completion=False)
prune_command = typer.Typer(add_completion=False)


@df_command.command("df")
def df(as_json: tables.AsJson = False) -> None:
    """How much disk Lorry uses, by kind. Everything lies in one folder."""
    try:
        found = asking.look("df")
    except NoState:
        state = config.resolve().state_dir
        if as_json:
            tables.show_json({"kinds": {}, "state_dir": str(state)})
        else:
            print(f"Nothing yet: {state} is made by the first run.")
        return
    if as_json:
        tables.show_json(found)
        return
    kinds = sorted(found["kinds"].items(), key=lambda item: -item[1])
    lines = [[kind, units.size(count).rjust(9)] for kind, count in kinds]
    lines.append(["total", units.size(sum(found["kinds"].values())).rjust(9)])
    print("\n".join(tables.aligned(lines)))
    print(f"\n{found['state_dir']}; {units.size(found['free'])} of {units.size(found['total'])} of its disk are free")


@prune_command.command("prune")
def prune(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also logs, caches and images that no living app uses, however young.")
    ] = False,
    yes: Yes = False,
    as_json: tables.AsJson = False,
) -> None:
    """Delete what no living app uses: old files and images. Never volumes or secrets."""
    more = ", unused images, caches, logs of stopped apps" if everything else ""
    confirm(f"Delete unused files, old images{more}?", yes)
    try:
        freed = asking.look("prune", all=everything)["freed"]
    except NoState:
        freed = {}
    if as_json:
        tables.show_json({"freed": freed})
        return
    for kind, count in freed.items():
        print(f"{kind:<8} {units.size(count):>9}")
    print(f"Freed {units.size(sum(freed.values()))}.")
