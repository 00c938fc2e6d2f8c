"""`lorry container` and `lorry ps`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lorry import errors
from lorry.cli import asking, tables, units
from lorry.cli.apps import find, show_logs
from lorry.cli.asking import NoState

commands = typer.Typer(add_completion=False, no_args_is_help=True, help="Containers: list, logs, stop.")
ps_command = typer.Typer(add_completion=False)

OfApp = Annotated[str, typer.Option("--app", metavar="NAME|ID", help="Only those of this app.")]

COLUMNS: list[tables.Column] = [
    ("CONTAINER", "container_id"),
    ("APP", lambda row: row["app"] or row["app_id"]),
    ("FUNCTION", "function"),
    ("STATE", "state"),
    ("INPUTS", "running"),
    ("MEMORY", lambda row: units.mebibytes(row["memory_mib"])),
    ("CPU", lambda row: units.duration(row["cpu_seconds"])),
    ("GPUS", lambda row: ",".join(map(str, row["gpus"]))),
    ("STARTED", lambda row: units.ago(row["started_at"])),
    ("START", lambda row: f"cold: {row['cold']}" if row["cold"] else row["start"]),
]
ENDED_COLUMNS: list[tables.Column] = [
    ("CONTAINER", "container_id"),
    ("APP", lambda row: row["app"] or row["app_id"]),
    ("STATE", "state"),
    ("PEAK", lambda row: units.mebibytes(row["peak_memory_mib"])),
    ("STARTED", lambda row: units.ago(row["started_at"])),
    ("STOPPED", lambda row: units.ago(row["stopped_at"])),
    ("REASON", "reason"),
]


@commands.command("list")
def list_(
    app: OfApp = "",
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also those that have ended, and why.")] = False,
    as_json: tables.AsJson = False,
) -> None:
    """Containers that live."""
    rows = _containers(app, everything)
    columns = ENDED_COLUMNS if everything else COLUMNS
    hint = "" if everything else "; --all shows those that have ended"
    tables.show(rows, columns, as_json=as_json, empty=f"No containers{hint}.")


@commands.command()
def logs(
    container: Annotated[str, typer.Argument(metavar="ID")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until its app stops.")] = False,
    tail: Annotated[int, typer.Option(metavar="N", min=0, help="Only the last N lines; 0 is all.")] = 0,
    timestamps: Annotated[bool, typer.Option("-t", "--timestamps", help="Put the time before each line.")] = False,
) -> None:
    """What a container printed."""
    app_id = find_container(container)["app_id"]
    params = {"app_id": app_id, "container": container, "follow": follow, "tail": tail}
    show_logs(params, timestamps)


@commands.command()
def stop(container: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Stop a container. The inputs that it works on run again in another one."""
    asking.act("container_stop", container_id=container)
    print(f"Stopping {container}; what it worked on is queued again.")


@commands.command("exec", context_settings={"allow_interspersed_args": False})
def exec_(
    container: Annotated[str, typer.Argument(metavar="ID")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND…")],
    pty: Annotated[
        bool | None, typer.Option("--pty/--no-pty", help="With a terminal; by default if this is one.")
    ] = None,
) -> int:
    """Run a program in a running container; the exit code is the program's."""
    from lorry.cli import shell

    return shell.run_in(container, tuple(command), pty)


@ps_command.command("ps")
def ps(app: OfApp = "", as_json: tables.AsJson = False) -> None:
    """Containers that live, and inputs that wait, with the reason."""
    containers = _containers(app, False)
    waiting = _pending(app)
    if as_json:
        tables.show_json({"containers": containers, "functions": waiting})
        return
    tables.show(containers, COLUMNS, as_json=False, empty="No containers.")
    queued = [row for row in waiting if row["waiting"] or row["retrying"]]
    if queued:
        print()
        columns: list[tables.Column] = [
            ("FUNCTION", "function"),
            ("WAITING", "waiting"),
            ("RETRYING", "retrying"),
            ("RUNNING", "running"),
            ("WHY IT WAITS", "reason"),
        ]
        tables.show(queued, columns, as_json=False, empty="")


def _containers(app: str, everything: bool) -> list[Any]:
    try:
        app_id = find(app)["app_id"] if app else None
        return list(asking.look("container_list", app_id=app_id, all=everything)["containers"])
    except NoState:
        return []


def _pending(app: str) -> list[Any]:
    try:
        app_id = find(app)["app_id"] if app else None
        params = {"app_id": app_id} if app_id else {}
        return list(asking.look("pending", **params)["functions"])
    except NoState:
        return []


def find_container(container_id: str) -> Any:
    """Living or ended; NotFoundError if there never was one."""
    for row in asking.act("container_list", all=True)["containers"]:
        if row["container_id"] == container_id:
            return row
    raise errors.NotFoundError(f"no container {container_id!r}; see `lorry container list --all`")
