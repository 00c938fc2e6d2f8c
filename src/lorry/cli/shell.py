"""`lorry shell`: a shell where a function runs. Also what `lorry container exec` does with this terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer

from lorry import errors
from lorry.cli import execution, targets
from lorry.model.function import FunctionKind, FunctionSpec
from lorry.sdk.app import App
from lorry.sdk.channel import drive
from lorry.sdk.container_process import ContainerProcess, start_program
from lorry.sdk.image import Image
from lorry.sdk.launch import prepare
from lorry.sdk.sandbox import SLEEPER, TERMINAL, sandbox_spec, start_sandbox
from lorry.sdk.steps import Ask, Steps

commands = typer.Typer(add_completion=False)

SHELL = ("sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash; exec sh")
FOR_EVER = 365 * 86_400.0
"""Seconds: a shell ends with its terminal."""
PIECE = 1 << 16


@commands.command("shell")
def shell(
    reference: Annotated[str, typer.Argument(metavar="[FILE[::NAME] | CONTAINER]")] = "",
    cmd: Annotated[str, typer.Option("--cmd", "-c", metavar="LINE", help="Run this line instead of a shell.")] = "",
    module: Annotated[bool, typer.Option("--module", "-m", help="FILE is a module's name, such as pkg.mod.")] = False,
    pty: Annotated[
        bool | None, typer.Option("--pty/--no-pty", help="With a terminal; by default if this is one.")
    ] = None,
) -> int:
    """A shell in the container of a function or image, with its files, packages, Volumes and secrets, or in a container
    that runs. Without a name, in the default image."""
    argv = ("sh", "-c", cmd) if cmd else SHELL
    if reference.startswith(("ct-", "sb-")):
        return run_in(reference, argv, pty)
    place, wanted = targets.split(reference)
    app = _chosen(targets.load(place, is_module=module), place, wanted) if place else App("shell")
    with execution.displaying(quiet=not sys.stderr.isatty()):
        container_id, app_id = drive(_start(app))
    try:
        return run_in(container_id, argv, pty)
    finally:
        drive(_stop(app_id))


# Where


def _chosen(module: ModuleType, place: str, wanted: str | None) -> App:
    """An app of its own that has the one function, or that has none and the image."""
    found = getattr(module, wanted, None) if wanted else None
    if isinstance(found, Image):
        return App("shell", image=found)
    app, tag = _owner(module, place, wanted)
    alone = App(
        app.name,
        image=app._image,
        secrets=app._secrets,
        volumes=app._volumes,
        include_source=app._include_source,
    )
    alone._module = app._module
    alone._functions = {name: f for name, f in app._functions.items() if name == tag}
    alone._classes = {name: c for name, c in app._classes.items() if name == tag}
    return alone


def _owner(module: ModuleType, place: str, wanted: str | None) -> tuple[App, str]:
    """The app, and the function or class that is meant."""
    things: list[tuple[App, str]] = []
    for app in targets.apps_of(module):
        things += [(app, tag) for tag in (*app.registered_functions, *app.registered_classes)]
    tag = (wanted or "").partition(".")[0]
    matching = [thing for thing in things if thing[1] == tag] if wanted else things
    if len(matching) == 1:
        return matching[0]
    names = "\n".join(f"  {place}::{name}" for _, name in things) or "  (none)"
    what = f"has no function, class or image {wanted!r}" if wanted else "has several functions; choose one"
    raise errors.InvalidError(f"{place} {what}:\n{names}")


def _start(app: App) -> Steps[tuple[str, str]]:
    """The container, in an app that ends with this process; their ids."""
    if not app._functions and not app._classes:
        spec = yield from sandbox_spec(SLEEPER, {"image": app._image, "timeout": FOR_EVER})
    else:
        (found,) = yield from prepare(app)
        spec = _sleeping(found)
    reply = yield Ask("app_create", {"name": app.name or "shell", "state": "ephemeral"})
    sandbox = yield from start_sandbox(spec, reply["app_id"], "")
    return sandbox.object_id, reply["app_id"]


def _sleeping(spec: FunctionSpec) -> FunctionSpec:
    """The function's container without its code running."""
    return dataclasses.replace(spec, kind=FunctionKind.SANDBOX, command=SLEEPER, timeout=FOR_EVER)


def _stop(app_id: str) -> Steps[None]:
    with contextlib.suppress(errors.Error):
        yield Ask("app_stop", {"app_id": app_id, "reason": "the shell ended"})


# This terminal


def run_in(container_id: str, argv: tuple[str, ...], pty: bool | None) -> int:
    """The program's exit code."""
    here = sys.stdin.isatty() and sys.stdout.isatty()
    terminal = here if pty is None else pty
    size = _size() if here else TERMINAL
    options: dict[str, Any] = {"terminal": size if terminal else None, "text": False}
    if terminal:
        options["env"] = {"TERM": os.environ.get("TERM", "xterm-256color")}
    process = drive(start_program(container_id, argv, options))
    return _typed(process) if terminal and here else _piped(process)


def _size() -> tuple[int, int]:
    size = os.get_terminal_size(sys.stdin.fileno())
    return size.lines, size.columns


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Every key goes inside, Ctrl-C too. Restored however this ends, but by SIGKILL."""

    def end(number: int, _frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    before = termios.tcgetattr(terminal)
    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _typed(process: ContainerProcess) -> int:
    """With this terminal as the program's."""
    terminal = sys.stdin.fileno()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    problems: list[BaseException] = []

    def show() -> None:
        try:
            while piece := process.stdout.read_piece():
                _write(sys.stdout.fileno(), piece)
        except BaseException as problem:
            problems.append(problem)
        os.write(wake, b"\0")  # no signal has this number

    resized = signal.signal(signal.SIGWINCH, lambda _number, _frame: None)
    bell = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    sys.stdout.flush()
    try:
        with _raw(terminal):
            shown = threading.Thread(target=show, name="lorry-shell", daemon=True)
            shown.start()
            _pass_on(process, terminal, woken)
    finally:
        signal.set_wakeup_fd(bell)
        signal.signal(signal.SIGWINCH, resized)
    if problems:
        raise problems[0]
    return process.wait()


def _pass_on(process: ContainerProcess, terminal: int, woken: int) -> None:
    """Keys and changes of size, until the output has ended."""
    sources = [terminal, woken]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if woken in ready:
            signals = os.read(woken, PIECE)
            if b"\0" in signals:
                return
            if signal.SIGWINCH in signals:
                process.resize(*_size())
        if terminal in ready:
            keys = os.read(terminal, PIECE)
            if not keys:
                sources.remove(terminal)
                process.stdin.write_eof()
            else:
                process.stdin.write(keys)
            with contextlib.suppress(errors.InvalidError, errors.NotFoundError):  # it has just ended
                process.stdin.drain()


def _piped(process: ContainerProcess) -> int:
    """With pipes or files as its streams."""
    threading.Thread(target=_feed, args=(process,), name="lorry-stdin", daemon=True).start()
    sys.stdout.flush()
    problems: list[BaseException] = []

    def copy_errors() -> None:
        try:
            _copy(process.stderr, sys.stderr.fileno())
        except BaseException as problem:  # nobody reads them: the program would wait for ever
            problems.append(problem)
            process.kill()

    thread = threading.Thread(target=copy_errors, name="lorry-stderr", daemon=True)
    if process.stderr is not process.stdout:
        thread.start()
    _copy(process.stdout, sys.stdout.fileno())
    if process.stderr is not process.stdout:
        thread.join()
    if problems:
        raise problems[0]
    return process.wait()


def _copy(stream: Any, target: int) -> None:
    while piece := stream.read_piece():
        _write(target, piece)


def _feed(process: ContainerProcess) -> None:
    with contextlib.suppress(errors.Error, OSError):
        while piece := os.read(sys.stdin.fileno(), PIECE):
            process.stdin.write(piece)
            process.stdin.drain()
        process.stdin.write_eof()
        process.stdin.drain()


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]
