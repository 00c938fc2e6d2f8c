"""`lorry secret`: environment variables that are encrypted at rest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorry import errors
from lorry.cli import asking, tables, units
from lorry.cli.asking import NoState
from lorry.cli.confirm import Yes, confirm
from lorry.sdk.secret import parse_dotenv

commands = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Secrets: environment variables, encrypted at rest."
)


@commands.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    pairs: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...")] = None,
    dotenv: Annotated[
        str, typer.Option("--from-dotenv", metavar="FILE", help="Take KEY=VALUE lines of a file; `-` is stdin.")
    ] = "",
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace a secret of this name.")] = False,
) -> None:
    """Keep values under a name. Functions that name it see them as environment variables."""
    values = {**(_from_dotenv(dotenv) if dotenv else {}), **dict(_pair(text) for text in pairs or ())}
    if not values:
        raise errors.InvalidError("a secret needs at least one KEY=VALUE, or --from-dotenv FILE")
    for key in values:
        if not key.isidentifier():
            raise errors.InvalidError(f"{key!r} cannot be the name of an environment variable")
    asking.act("secret_put", name=name, values=values, replace=force)
    print(f'Created secret {name} ({", ".join(values)}). In a function: secrets=[lorry.Secret.from_name("{name}")]')


def _pair(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found:
        raise errors.InvalidError(f"{text!r} has no '=': values are given as KEY=VALUE")
    return key, value


def _from_dotenv(file: str) -> dict[str, str]:
    try:
        return parse_dotenv(sys.stdin.read() if file == "-" else Path(file).read_text())
    except OSError as problem:
        raise errors.InvalidError(f"{file} cannot be read: {problem.strerror}") from None


@commands.command("list")
def list_(as_json: tables.AsJson = False) -> None:
    """Names and keys. Values are never shown: they leave the server only into containers."""
    try:
        rows = asking.look("secret_list")["secrets"]
    except NoState:
        rows = []
    columns: list[tables.Column] = [
        ("NAME", "name"),
        ("KEYS", lambda row: ", ".join(row["keys"])),
        ("CREATED", lambda row: units.ago(row["created_at"])),
    ]
    tables.show(rows, columns, as_json=as_json, empty="No secrets; `lorry secret create NAME KEY=VALUE` makes one.")


@commands.command()
def delete(name: Annotated[str, typer.Argument(metavar="NAME")], yes: Yes = False) -> None:
    """Delete a secret."""
    asking.act("secret_lookup", name=name)
    confirm(f"Delete secret {name}?", yes)
    asking.act("secret_delete", name=name)
    print(f"Deleted secret {name}.")
