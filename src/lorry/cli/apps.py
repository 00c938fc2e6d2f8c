"""`lorry app`: list, stop, logs, coldstarts."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lorry.cli import asking, tables, units
from lorry.cli.asking import NoState
from lorry.model.coldstart import STAGES
from lorry.sdk.display import PlainDisplay

commands = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Apps: what runs, what ran, and what it printed."
)

SHOWN_STARTS = 20
"""Of each function, newest first."""
SHORTEST = 0.001
"""Seconds."""

NameOrId = Annotated[str, typer.Argument(metavar="NAME|ID")]


@commands.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that have stopped.")] = False,
    as_json: tables.AsJson = False,
) -> None:
    """Apps that run or are deployed, newest first."""
    try:
        rows = asking.look("app_list", all=everything)["apps"]
    except NoState:
        rows = []
    columns: list[tables.Column] = [
        ("APP", "app_id"),
        ("NAME", "name"),
        ("STATE", "state"),
        ("CONTAINERS", "containers"),
        ("STARTED", lambda row: units.ago(row["created_at"])),
    ]
    if everything:
        columns.append(("STOPPED", lambda row: units.ago(row["stopped_at"])))
    hint = "" if everything else "; --all shows those that have stopped"
    tables.show(rows, columns, as_json=as_json, empty=f"No apps{hint}.")


@commands.command()
def stop(app: NameOrId) -> None:
    """Stop an app: its calls are cancelled, its containers end."""
    found = find(app)
    if found["state"] == "stopped":
        print(f"App {found['name']} ({found['app_id']}) has stopped already.")
        return
    asking.act("app_stop", app_id=found["app_id"], reason="a person stopped it")
    print(f"Stopped {found['name']} ({found['app_id']}).")


@commands.command()
def logs(
    app: NameOrId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the app stops.")] = False,
    call: Annotated[str, typer.Option(metavar="ID", help="Only what this call printed.")] = "",
    tail: Annotated[int, typer.Option(metavar="N", min=0, help="Only the last N lines; 0 is all.")] = 0,
    timestamps: Annotated[bool, typer.Option("-t", "--timestamps", help="Put the time before each line.")] = False,
) -> None:
    """What an app's containers printed: stdout to stdout, stderr to stderr."""
    params = {"app_id": find(app)["app_id"], "follow": follow, "tail": tail}
    if call:
        params["call"] = call
    show_logs(params, timestamps)


@commands.command()
def coldstarts(app: NameOrId, as_json: tables.AsJson = False) -> None:
    """How long each container took to start, stage by stage, and what would make it faster."""
    found = asking.look("coldstarts", app_id=find(app)["app_id"])
    if as_json:
        tables.show_json(found)
        return
    if not found["starts"]:
        print("None of its containers has answered an input yet.")
    for function, sentences in found["advice"].items():
        rows = [row for row in found["starts"] if row["function"] == function]
        print(f"{function}:")
        for line in _table(rows[:SHOWN_STARTS]):
            print(f"  {line}")
        if len(rows) > SHOWN_STARTS:
            print(f"  … and {len(rows) - SHOWN_STARTS} earlier ones; see --json")
        for sentence in sentences:
            print(_wrapped(sentence))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Without the stages that took no time in any of them: so it has room on a terminal of 80 columns."""
    stages = [stage for stage in STAGES if any(row["seconds"].get(stage, 0.0) >= SHORTEST for row in rows)]
    lines = [["STARTED", *(stage.upper() for stage in stages), "ALL", "START"]]
    for row in rows:
        times = [*(row["seconds"].get(stage, 0.0) for stage in stages), sum(row["seconds"].values())]
        how = "cold" if row["cold"] else "template"
        lines.append([units.ago(row["started_at"]), *map(units.short_duration, times), how])
    return tables.aligned(lines)


def _wrapped(sentence: str) -> str:
    """Whole words on a terminal; one line in a pipe."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    return textwrap.fill(sentence, width or sys.maxsize, initial_indent="  ", subsequent_indent="  ")


def show_logs(params: dict[str, Any], timestamps: bool) -> None:
    """Print the lines of `app_logs`."""
    asking.stream("app_logs", params, log_printer(params, timestamps))


def log_printer(params: dict[str, Any], timestamps: bool) -> Callable[[dict[str, Any]], None]:
    """For the events of `app_logs`. What comes while following is filtered here: the server sends it all."""
    display = PipeAwareDisplay()
    wanted = _filter(params)

    def event(value: dict[str, Any]) -> None:
        for row in value.get("lines", ()):
            if wanted(row):
                display.line({**row, "x": f"{units.moment(row['t'])}  {row['x']}"} if timestamps else row)

    return event


def _filter(params: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    call, container = params.get("call"), params.get("container")
    return lambda row: (not call or row["k"] == call) and (not container or row["c"] == container)


class PipeAwareDisplay(PlainDisplay):
    def reader_gone(self) -> None:
        raise BrokenPipeError


def find(wanted: str) -> Any:
    """The app of that name or id; NotFoundError says how to see which there are."""
    return asking.act("app_lookup", app=wanted)
