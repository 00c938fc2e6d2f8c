"""`lorry why`: the reasons that were stored with every decision."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lorry import errors
from lorry.cli import asking, tables, units
from lorry.cli.apps import find
from lorry.cli.containers import find_container

commands = typer.Typer(add_completion=False)
MAX_CONTAINERS = 50
"""Containers of an app whose decisions are shown, newest first."""


@commands.command("why")
def why(
    subject: Annotated[str, typer.Argument(metavar="CONTAINER|APP")],
    as_json: tables.AsJson = False,
) -> None:
    """Why containers were started and stopped, and why inputs wait."""
    decisions, waiting = _about(subject)
    if as_json:
        tables.show_json({"decisions": decisions, "waiting": waiting})
        return
    for row in waiting:
        print(f"{row['function']}: {row['waiting']} inputs wait: {row['reason']}")
    columns: list[tables.Column] = [
        ("WHEN", lambda row: units.moment(row["at"])),
        ("WHAT", "kind"),
        ("ABOUT", "subject"),
        ("WHY", "reason"),
    ]
    if decisions or not waiting:
        tables.show(decisions, columns, as_json=False, empty=f"No decision about {subject} is kept.")


def _about(subject: str) -> tuple[list[Any], list[Any]]:
    """Decisions, oldest first, and functions with inputs that wait."""
    if subject.startswith(("ct-", "sb-")):
        find_container(subject)
        return _decisions([subject]), []
    try:
        app_id = find(subject)["app_id"]
    except errors.NotFoundError:
        raise errors.NotFoundError(f"{subject!r} is neither a container nor an app; see `lorry ps`") from None
    rows = asking.act("container_list", app_id=app_id, all=True)["containers"]
    pending = [row for row in asking.act("pending", app_id=app_id)["functions"] if row["waiting"]]
    return _decisions([app_id, *(row["container_id"] for row in rows[:MAX_CONTAINERS])]), pending


def _decisions(subjects: list[str]) -> list[Any]:
    found = [row for subject in subjects for row in asking.act("why", subject=subject)["decisions"]]
    return sorted(found, key=lambda row: row["at"])
