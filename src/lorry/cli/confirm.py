"""Asking before something is lost."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lorry.errors import InvalidError

Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]


def confirm(question: str, yes: bool) -> None:
    """Aborts on no. Where nobody can answer, --yes is required."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidError("this deletes something and there is no terminal to ask at: add --yes")
    typer.confirm(question, abort=True)
