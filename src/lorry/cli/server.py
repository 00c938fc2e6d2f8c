"""`lorry server`: it starts by itself with the first command that needs it; these are for looking and for ending."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import typer

from lorry import config, errors
from lorry.cli import asking, tables, units
from lorry.sdk.start_server import LOG_NAME

commands = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The server behind all commands. It starts and ends by itself."
)

Force = Annotated[bool, typer.Option("-f", "--force", help="Even though apps run: they are stopped.")]
STOP_PATIENCE = 60.0
"""Seconds until `stop` says that the server does not end. Containers have 10 s for their exit hooks; runs have their
function's grace on top."""
LOG_POLL = 0.2


@commands.command()
def start() -> None:
    """Start it now, rather than with the first run."""
    before = asking.running()
    status = before or asking.act("server_status")
    print(f"{'It runs already' if before else 'Started'}: pid {status['keeper']}, state in {status['state_dir']}")


@commands.command()
def stop(force: Force = False) -> None:
    """End it and wait until it is gone. Deployed apps come back with its next start."""
    print("Stopped." if _stop("stop", force) else "No server is running.")


@commands.command()
def restart(
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Even a server that does not speak our protocol.")
    ] = False,
) -> None:
    """End it and start the version of Lorry that is installed now. Apps and containers go on meanwhile."""
    _stop("restart", force)
    status = asking.act("server_status")
    print(f"Started: pid {status['keeper']}, version {status['version']}")


def _stop(command: str, force: bool) -> bool:
    """Whether there was one."""
    try:
        if asking.running() is None:
            return False
        answer = asking.act("server_stop", force=force, restart=command == "restart")
    except errors.VersionError as other:
        if not force:
            raise errors.VersionError(
                f"{other}: `lorry server {command} --force`, because it cannot be asked whether apps run"
            ) from None
        _wait_for_end(_terminate())
        return True
    # The worker first: it may have lost its keeper, and a new server must not start beside it.
    _wait_for_end(int(answer["worker"]), float(answer.get("grace", 0)))
    _wait_for_end(int(answer["keeper"]))
    return True


def _terminate() -> int:
    """End a server that does not speak our protocol. It answers, so its keeper holds the lock, which names it."""
    keeper = int((config.resolve().state_dir / "lock").read_text())
    os.kill(keeper, signal.SIGTERM)
    return keeper


def _wait_for_end(pid: int, grace: float = 0.0) -> None:
    patience = STOP_PATIENCE + grace
    if not gone(pid, patience):
        raise errors.Error(f"the server (pid {pid}) has not ended in {patience:g} s; see `lorry server logs`")


def gone(pid: int, seconds: float) -> bool:
    """Wait for a process that is not our child. One that has ended and that nobody has reaped yet is gone."""
    if not hasattr(os, "pidfd_open"):
        return _gone_by_asking(pid, seconds)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _gone_by_asking(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@commands.command()
def status(as_json: tables.AsJson = False) -> None:
    """Whether it runs, and what it has. Exit code 1 when it does not run; it is never started by this."""
    found = asking.running()
    if as_json:
        tables.show_json({"running": found is not None, **(found or {})})
    elif found is None:
        print("No server is running; the first command that needs one starts it.")
    else:
        print("\n".join(tables.aligned(_described(found))))
    if found is None:
        raise typer.Exit(1)


def _described(status: dict[str, Any]) -> list[list[str]]:
    gpus = ", ".join(f"{gpu['model']} ({units.mebibytes(gpu['memory_mib'])})" for gpu in status["gpus"])
    return [
        ["version", _version(status["version"])],
        ["running", f"since {units.moment(status['started_at'])}, pid {status['keeper']}"],
        ["isolation", status["sandbox"]],
        ["machine", f"{status['cores']:g} cores, {units.mebibytes(status['memory_mib'])}, {gpus or 'no GPU'}"],
        ["apps", str(status["apps"])],
        ["containers", str(status["containers"])],
        ["state", status["state_dir"]],
    ]


def _version(theirs: str) -> str:
    from lorry import __version__

    return theirs if theirs == __version__ else f"{theirs}; this is {__version__}: lorry server restart"


@commands.command()
def logs(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option(metavar="N", min=0, help="Only the last N lines; 0 is all.")] = 0,
) -> None:
    """The server's own log: starts, stops and troubles. What functions print is in `lorry app logs`."""
    path = config.resolve().state_dir / LOG_NAME
    if not path.exists():
        raise errors.NotFoundError(f"there is no {path}: no server has run with this state directory")
    _print_log(path, tail, follow)


def _print_log(path: Path, tail: int, follow: bool) -> None:
    with path.open(errors="replace") as file:
        for line in deque(file, maxlen=tail or None):
            sys.stdout.write(line)
        sys.stdout.flush()
        while follow:
            line = file.readline()
            if line:
                print(line, end="", flush=True)
            else:
                time.sleep(LOG_POLL)
