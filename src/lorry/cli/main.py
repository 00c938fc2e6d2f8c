"""The `lorry` command: finds the command group by the first word and imports that group alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

_COMMANDS = {
    "run": "run_command:commands",
    "deploy": "deploy:commands",
    "shell": "shell:commands",
    "app": "apps:commands",
    "runs": "runs:commands",
    "ps": "containers:ps_command",
    "container": "containers:commands",
    "volume": "volumes:commands",
    "secret": "secrets:commands",
    "image": "image:commands",
    "server": "server:commands",
    "df": "disk:df_command",
    "prune": "disk:prune_command",
    "why": "why:commands",
    "config": "settings:commands",
    "doctor": "doctor:commands",
}
"""Command → module of lorry.cli and its typer app."""


def main() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with it closed (`>&-`): whoever prints would fail
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the life of the process
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """The exit code: 0, 1 an error, 2 wrong usage, 130 Ctrl-C, 141 nobody reads the output."""
    from lorry import errors

    try:
        if sys.platform != "linux" and words and words[0] not in ("doctor", "--version"):
            from lorry import _NEEDS_LINUX

            raise errors.ResourceError(_NEEDS_LINUX)
        if words and words[0] == "run":
            from lorry.cli.run import fast

            code = fast(words[1:])
            if code is not None:
                return code
        if words and words[0] and not words[0].startswith("-") and words[0] not in _COMMANDS:
            return _no_such_command(words[0])
        code = _typer(list(words))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        from lorry.cli.execution import EXIT_READER_GONE, hush

        hush()
        return EXIT_READER_GONE
    except (errors.Error, OSError) as problem:  # OSError: stdout on a full disk, a folder that may not be written
        print(f"Error: {problem}", file=sys.stderr)
        return 1


def _no_such_command(word: str) -> int:
    import difflib

    place = word.partition("::")[0]
    close = difflib.get_close_matches(word, _COMMANDS, 1)
    wanted = f"run {word}" if place.endswith(".py") else close[0] if close else "--help"
    print(f"Usage: lorry COMMAND …\nError: there is no command {word!r}; see lorry {wanted}", file=sys.stderr)
    return 2


def _typer(words: list[str]) -> int:
    import typer.main

    command = typer.main.get_command(_root())
    try:
        code = command.main(args=words, prog_name="lorry", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Abort as aborted:
        if isinstance(aborted.__cause__ or aborted.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        print("Stopped.", file=sys.stderr)
        return 1
    except Exception as problem:  # usage errors: their class has moved between versions of typer and click
        if not (hasattr(problem, "show") and hasattr(problem, "exit_code")):
            raise
        problem.show()
        return int(problem.exit_code)


def _root() -> Any:
    import typer
    import typer.core
    import typer.main

    class Lazy(typer.core.TyperGroup):
        """Imports the module of a command when it is asked for."""

        def list_commands(self, ctx: Any) -> list[str]:
            return list(_COMMANDS)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in _COMMANDS:
                return None
            import importlib

            module, _, name = _COMMANDS[cmd_name].partition(":")
            found = getattr(importlib.import_module(f"lorry.cli.{module}"), name)
            found.rich_markup_mode = None  # frames around the help cost 70 ms, and room on a narrow terminal
            command = typer.main.get_command(found)
            command.name = cmd_name
            return command

    names = {"help_option_names": ["-h", "--help"]}
    root = typer.Typer(cls=Lazy, no_args_is_help=True, context_settings=names, rich_markup_mode=None)

    def show_version(wanted: bool) -> None:
        if wanted:
            from lorry import __version__

            print(f"lorry {__version__}")
            raise typer.Exit

    @root.callback()
    def lorry(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Show the version."
        ),
    ) -> None:
        """Serverless for AI work, on your own machines."""

    return root


if __name__ == "__main__":
    main()
