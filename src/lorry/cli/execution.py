"""Runs a target with the app up: output, returned value, closing line, exit code."""

from __future__ import annotations

import contextlib
import inspect
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorry import config, errors
from lorry.cli import tracebacks, units
from lorry.cli.targets import Target
from lorry.model.function import ResumePolicy
from lorry.sdk.display import Display, PlainDisplay, line_buffered, note, showing

if TYPE_CHECKING:
    from lorry.cli.run_watch import RunWatch

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 128 + signal.SIGPIPE


class ReaderGone(BaseException):
    """Nobody reads our output any more (`lorry run … | head -1`): stop, quietly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    detach: bool = False
    quiet: bool = False
    name: str | None = None


# Displays


def _tell_main_thread() -> None:
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGPIPE)


class PipedDisplay(PlainDisplay):
    def reader_gone(self) -> None:
        _tell_main_thread()


@contextlib.contextmanager
def _stops_when_reader_is_gone() -> Iterator[None]:
    """Python ignores SIGPIPE; inside this block it ends the main thread's work, once."""

    def gone(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        raise ReaderGone

    before = signal.signal(signal.SIGPIPE, gone)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, before)


def reader_is_gone() -> bool:
    """stdout is a pipe that nobody reads."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _fd, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def hush() -> None:
    """What is still buffered goes nowhere: without this, Python complains about the broken pipe while it ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextlib.contextmanager
def displaying(quiet: bool) -> Iterator[PlainDisplay]:
    """A live display where both streams are a terminal that understands it, plain lines elsewhere."""
    terminal = sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM") not in (None, "dumb")
    with line_buffered(), _stops_when_reader_is_gone():
        if terminal and not quiet:
            from lorry.cli.live_display import LiveDisplay

            with LiveDisplay(colour=not os.environ.get("NO_COLOR")) as live, showing(live):
                yield live
        else:
            plain = PipedDisplay(quiet=quiet)
            with showing(plain):
                yield plain


# The run


def execute(target: Target, rest: list[str], values: dict[str, Any], options: Options) -> int:
    """The exit code."""
    began = time.monotonic()
    code, word, problem, result = 0, "Finished in", None, None
    peak: list[int] = []
    hints: list[str] = []
    try:
        with displaying(options.quiet) as display:
            try:
                result = _run(target, rest, values, options, display, hints)
            finally:
                peak.append(display.peak_mib)
        _print_result(result)
    except KeyboardInterrupt:
        code, word = EXIT_INTERRUPTED, "Stopped after"
    except SystemExit:
        raise
    except BaseException as raised:
        if isinstance(raised, ReaderGone) or (isinstance(raised, BrokenPipeError) and reader_is_gone()):
            hush()
            return EXIT_READER_GONE
        code, word, problem = EXIT_ERROR, "Failed after", raised
    if problem is not None:
        tracebacks.show(problem)
    if not options.quiet:
        print("".join(f"{hint}\n" for hint in hints), end="", file=sys.stderr, flush=True)
    if not options.quiet and not (options.detach and not code):
        text = f"{word} {units.duration(time.monotonic() - began)}"
        text += f", peak memory {units.mebibytes(peak[0])}" if peak and peak[0] else ""
        print(text, file=sys.stderr, flush=True)
    return code


def _print_result(result: Any) -> None:
    if result is not None:
        print(result, flush=True)


def _run(
    target: Target, rest: list[str], values: dict[str, Any], options: Options, display: Display, hints: list[str]
) -> Any:
    """`hints` gets a line for each run that is not done when this ends."""
    app = target.app
    if options.detach and not target.is_local and inspect.isgeneratorfunction(target.raw):
        raise errors.InvalidError(f"{target.name} is a generator: somebody must read it, so it cannot be detached")
    call = _detached_call(target, values) if options.detach else _call(target, rest, values)
    starting = not config.resolve().client_socket.exists()
    if starting:
        display.note("Starting the Lorry server …")
    with contextlib.ExitStack() as afterwards, app.run(detach=options.detach):
        app_id = app.app_id
        assert app_id is not None
        watch = _watch_over(target, app_id, options, display)
        if watch is not None:
            afterwards.callback(lambda: hints.extend(watch.hints()))
            afterwards.callback(watch.close)
        if starting:
            _tell_what_isolates(display)
        display.note(f"App {app.name or 'unnamed'} is up: {app_id} ({_objects(target)})")
        try:
            result = call()
        except KeyboardInterrupt:
            display.note("Leaving the app …" if options.detach else _stopping(target, watch))
            if options.detach:
                _tell_how_to_go_on(app_id, options)
            raise
    if options.detach:
        _tell_how_to_go_on(app_id, options)
    return result


def _policies(target: Target) -> list[ResumePolicy]:
    """Of the app's resumable functions."""
    specs = [function.info for function in target.app.registered_functions.values()]
    return [spec.resumable for spec in specs if spec is not None and spec.resumable is not None]


def _watch_over(target: Target, app_id: str, options: Options, display: Display) -> RunWatch | None:
    """None where there cannot be runs, or nobody stays to see them."""
    if not _policies(target) or (options.detach and not target.is_local):
        return None
    from lorry.cli.run_watch import RunWatch

    return RunWatch(app_id, display)


def _stopping(target: Target, watch: RunWatch | None) -> str:
    active = len(watch.active) if watch is not None else 0
    if not active:
        return "Stopping the app …"
    grace = units.about(max(policy.grace for policy in _policies(target)))
    who = "its run saves" if active == 1 else f"its {active} runs save"
    return f"Stopping the app: {who} first, for up to {grace} (Ctrl-C again: do not wait) …"


def _tell_what_isolates(display: Display) -> None:
    from lorry.cli import asking

    status = asking.running()
    if status is not None and status["sandbox"] == "process":
        display.note(
            "Containers are not isolated from this machine (tier process): no Volumes, no added files. "
            "`lorry doctor` says what is in the way"
        )


def _objects(target: Target) -> str:
    names = [f"{name}()" for name in target.app.registered_functions]
    names += [f"class {name}" for name in target.app.registered_classes]
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "no functions"


def _call(target: Target, rest: list[str], values: dict[str, Any]) -> Callable[[], Any]:
    if target.is_local:
        return lambda: _local(target.raw, rest, values)
    function, arguments = _remote(target, values)
    if function.is_generator:
        return lambda: _print_each(function.remote_gen(*rest, **arguments))
    return lambda: function.remote(*rest, **arguments)


def _remote(target: Target, values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The Function to call, and its own share of the values: the others are the class's parameters."""
    if target.cls is None:
        return target.function, values
    own = set(inspect.signature(target.raw).parameters)
    given = {name: value for name, value in values.items() if name not in own}
    method = getattr(target.cls(**given), target.name.rpartition(".")[2])
    return method, {name: value for name, value in values.items() if name in own}


def _local(raw: Callable[..., Any], rest: list[str], values: dict[str, Any]) -> Any:
    result = raw(*rest, **values)
    if inspect.iscoroutine(result):
        import asyncio  # 25 ms that most runs do not need

        return asyncio.run(result)
    return _print_each(result) if inspect.isgenerator(result) else result


def _print_each(values: Iterator[Any]) -> None:
    for value in values:
        print(value, flush=True)


def _detached_call(target: Target, values: dict[str, Any]) -> Callable[[], Any]:
    if target.is_local:
        return lambda: _local(target.raw, [], values)
    function, arguments = _remote(target, values)

    def spawn() -> None:
        call = function.spawn(**arguments)
        note(f"Started {target.name}: {call.object_id}")
        if _policies(target):
            note(f"  watch it:         lorry runs show {call.object_id} -f")

    return spawn


def _tell_how_to_go_on(app_id: str, options: Options) -> None:
    """The id alone on stdout, for scripts."""
    if not options.quiet:
        print("The app goes on without this terminal.", file=sys.stderr)
        print(f"  follow its logs:  lorry app logs {app_id} -f", file=sys.stderr)
        print(f"  stop it:          lorry app stop {app_id}", file=sys.stderr)
    print(app_id, flush=True)
