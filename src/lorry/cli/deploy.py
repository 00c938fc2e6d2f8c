"""`lorry deploy`: start an app for good."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from lorry import errors

commands = typer.Typer(add_completion=False)


@commands.command("deploy")
def deploy(
    target: Annotated[str, typer.Argument(metavar="FILE", help="The file with the app, or `-m` and a module.")],
    module: Annotated[bool, typer.Option("-m", "--module", help="FILE is a module: package.module")] = False,
    name: Annotated[str | None, typer.Option("-n", "--name", help="Another name for the app.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Start an app for good. A new version takes over from the old one, whose running inputs end in peace."""
    from lorry.cli import targets, tracebacks
    from lorry.cli.execution import displaying

    try:
        place, wanted = targets.split(target)
        if wanted is not None:
            raise errors.InvalidError("a whole app is deployed: leave ::" + wanted + " out")
        loaded = targets.load(place, is_module=module)
        app = targets.choose_app(loaded, place)
        with displaying(quiet):
            app.deploy(name=name)
        _tell(app, place)
    except Exception as problem:
        tracebacks.show(problem)
        sys.exit(1)


def _tell(app: Any, place: str) -> None:
    from lorry.cli import asking

    record = asking.act("app_lookup", app=app.deployed_id)
    print(f"Deployed {app.name}, version {record['version']} ({app.deployed_id}).")
    for tag in app.registered_functions:
        print(f'  lorry.Function.from_name("{app.name}", "{tag}")')
    for tag in app.registered_classes:
        print(f'  lorry.Cls.from_name("{app.name}", "{tag}")')
    print(f"  logs: lorry app logs {app.name} -f    stop: lorry app stop {app.name}")
