"""`lorry run` as typer sees it: help, completion, and errors of usage. The everyday path is `run.fast`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lorry.cli.execution import Options
from lorry.cli.run import run_target

commands = typer.Typer(add_completion=False)


@commands.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def run(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(metavar="FILE[::NAME]", help="What to run; `-` reads a program from stdin."),
    ],
    module: Annotated[bool, typer.Option("-m", "--module", help="FILE is a module: package.module")] = False,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Let the app go on when this command ends or is interrupted.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Show the functions' output and results, nothing else.")
    ] = False,
    name: Annotated[str | None, typer.Option("-n", "--name", help="Another name for the app.")] = None,
) -> None:
    """Run a function or local entrypoint of a file.

    Without ::NAME it is the file's only local entrypoint, else its only function.

    The function's parameters are flags: lorry run train.py::fit --epochs 3

    What stands behind FILE goes to the function: lorry run train.py::fit --help
    """
    options = Options(detach=detach, quiet=quiet, name=name)
    sys.exit(run_target(target, context.args, is_module=module, options=options))
