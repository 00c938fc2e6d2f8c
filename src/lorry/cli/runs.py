"""`lorry runs`: trainings that outlive their containers."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Annotated, Any

import typer

from lorry import errors
from lorry.cli import asking, run_follow, run_words, tables, units
from lorry.cli.asking import NoState
from lorry.cli.curves import number
from lorry.cli.run_watch import MOST_RUNS, PERIOD

commands = typer.Typer(add_completion=False, help="Runs of resumable functions: see, stop, resume, verify.")

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Its id, the beginning of it, or a call id.")]
MOST_CANDIDATES = 5
ALL_POINTS = 10_000
"""Rows of metrics for --json: all that the server gives."""


@commands.callback(invoke_without_command=True)
def runs(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


@commands.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that have ended.")] = False,
    app: Annotated[str, typer.Option("--app", metavar="NAME|ID", help="Only those of this app.")] = "",
    as_json: tables.AsJson = False,
) -> None:
    """Runs that train or wait, newest first."""
    try:
        rows = _all(everything)
    except NoState:
        rows = []
    rows = [row for row in rows if not app or app in (row["app_name"], row["app_id"])]
    hint = "" if everything else "; --all shows those that have ended"
    columns = _columns([row["run_id"] for row in rows])
    if as_json or not rows:
        tables.show(rows, columns, as_json=as_json, empty=f"No runs{hint}.")
        return
    for line in _table(rows, columns):
        print(line)


@commands.command()
def show(
    run: RunId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    as_json: tables.AsJson = False,
) -> None:
    """One run: progress, curves, attempts, checkpoints, and why it failed."""
    if as_json and follow:
        raise errors.InvalidError("--json shows the run once: leave --follow out")
    if follow:
        run_follow.page(find(run, wait=True)["run_id"])
        return
    found = find(run, points=ALL_POINTS if as_json else run_follow.POINTS)
    if as_json:
        tables.show_json(found)
    else:
        run_follow.put(run_follow.whole_page(found))


@commands.command()
def logs(
    run: RunId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    tail: Annotated[int, typer.Option(metavar="N", min=0, help="Only the last N lines; 0 is all.")] = 0,
) -> None:
    """What a run has printed since it was begun or resumed, in all attempts."""
    run_follow.logs(find(run, wait=follow), follow=follow, tail=tail)


@commands.command()
def resume(
    run: RunId,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Only start it.")] = False,
) -> int:
    """Go on with a run that was stopped or has failed, from its newest checkpoint."""
    found = asking.act("run_resume", run=find(run)["run_id"])
    run_id = found["run_id"]
    if detach:
        print(f"{run_id} goes on.", file=sys.stderr)
        print(f"  watch it:  lorry runs show {run_id} -f", file=sys.stderr)
        print(f"  stop it:   lorry runs cancel {run_id}", file=sys.stderr)
        print(found["app_id"], flush=True)
        return 0
    return run_follow.attach(run_id, found["app_id"])


@commands.command()
def cancel(run: RunId) -> None:
    """Stop a run when it has saved. It can be resumed."""
    found = find(run)
    run_id = found["run_id"]
    if run_words.is_active(found):
        print(f"Stopping {run_id} when it has saved …", file=sys.stderr, flush=True)
        found = asking.act("run_cancel", run=run_id)
        print(run_words.how_to_go_on(found) or f"{run_id} was done before it could be stopped.")
    else:
        print(run_words.how_to_go_on(found) or f"{run_id} is {found['state']} already.")


@commands.command()
def verify(run: RunId, as_json: tables.AsJson = False) -> int:
    """Read every checkpoint of a run. The exit code is 1 when something is damaged."""
    rows = asking.act("run_verify", run=find(run)["run_id"])["checkpoints"]
    columns: list[tables.Column] = [
        ("CHECKPOINT", lambda row: f"step {row['step']:,}"),
        ("SIZE", lambda row: units.size(row["bytes"]) if row["bytes"] or row["damaged"] else run_words.MANIFEST_ONLY),
        ("MANIFEST", lambda row: row["manifest"][:12]),
        ("STATE", _wholeness),
    ]
    tables.show(rows, columns, as_json=as_json, empty="It has no checkpoint yet.")
    return int(any(row["damaged"] for row in rows))


def _wholeness(row: tables.Row) -> str:
    if not row["damaged"]:
        return "whole"
    more = len(row["damaged"]) - 1
    return f"damaged: {row['damaged'][0]}" + (f" and {more} more" if more else "")


# Finding


def find(wanted: str, *, points: int = 1, wait: bool = False) -> Any:
    """The run of that id, beginning of an id, or call; `wait`: until the call has begun. NotFoundError names some that
    there are."""
    while True:
        try:
            return asking.act("run_show", run=wanted, points=points)
        except errors.NotFoundError as missing:
            if not _is_call_without_run(wanted):
                raise errors.NotFoundError(f"{str(missing).partition(';')[0]}{_candidates()}") from None
        if not wait:
            raise errors.NotFoundError(f"{wanted} has no run yet: it waits for its container; see `lorry ps`")
        time.sleep(PERIOD)


def _is_call_without_run(wanted: str) -> bool:
    try:
        return wanted.startswith("fc-") and asking.act("call_info", call=wanted)["state"] in ("open", "closed")
    except errors.NotFoundError:
        return False


def _candidates() -> str:
    rows = _all(True)[:MOST_CANDIDATES]
    listed = "".join(f"\n  {row['run_id']}  {row['function']}, {row['state']}" for row in rows)
    return f"; the newest are{listed}" if rows else "; see `lorry runs list --all`"


def _all(everything: bool) -> list[Any]:
    return list(asking.look("run_list", all=everything, limit=MOST_RUNS)["runs"])


# The list


def _columns(run_ids: list[str]) -> list[tables.Column]:
    """The most important first. Ids are whole in a pipe, and as long as they must be on a terminal."""
    short = sys.stdout.isatty()
    return [
        ("RUN", lambda row: run_words.short(row["run_id"], run_ids) if short else row["run_id"]),
        ("FUNCTION", "function"),
        ("STATE", "state"),
        ("STEP", lambda row: f"{run_words.steps(row)} {run_words.percent(row)}".rstrip()),
        ("LEFT", run_words.left),
        ("LOSS", _loss),
        ("SAVED", lambda row: "" if row["head_step"] is None else f"step {row['head_step']:,}"),
        ("SLICES", lambda row: row["slices"] + 1),  # the one that it is in, or ended in
        ("INTERRUPTED", "interruptions"),
    ]


def _loss(row: tables.Row) -> str:
    found = run_words.headline(row["metrics"])
    return "" if found is None else number(found[1]) if found[0] == "loss" else f"{found[0]} {number(found[1])}"


def _table(rows: list[Any], columns: list[tables.Column]) -> list[str]:
    """On a narrow terminal without the last columns."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    while True:
        lines = tables.lines(rows, columns)
        if max(map(len, lines)) <= room or len(columns) == 1:
            return lines
        columns = columns[:-1]
