"""`lorry run`. Its own few options are read here without typer, which would cost every run 50 ms."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorry import errors
from lorry.cli.arguments import HelpWanted, Signature, UsageError, signature_of
from lorry.cli.execution import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE, Options, execute

if TYPE_CHECKING:
    from lorry.cli.targets import Target

_SWITCHES = {"-d": "detach", "--detach": "detach", "-q": "quiet", "--quiet": "quiet"}


def fast(words: Sequence[str]) -> int | None:
    """Exit code of `lorry run WORDS`; None where typer has something to say (help, unknown option, no target)."""
    given: dict[str, Any] = {}
    is_module = False
    left = list(words)
    while left and left[0].startswith("-") and left[0].partition("::")[0] != "-":
        word = left.pop(0)
        if word in _SWITCHES:
            given[_SWITCHES[word]] = True
        elif word in ("-n", "--name") and left:
            given["name"] = left.pop(0)
        elif word in ("-m", "--module"):
            is_module = True
        else:
            return None
    if not left:
        return None
    return run_target(left[0], left[1:], is_module=is_module, options=Options(**given))


def run_target(reference: str, words: list[str], *, is_module: bool, options: Options) -> int:
    from lorry.cli import targets, tracebacks

    place, wanted = targets.split(reference)
    sys.argv = [place, *words]
    try:
        module = targets.load(place, is_module=is_module)
        target = targets.choose(module, place, wanted)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as problem:
        tracebacks.advise_missing_module(problem)
        tracebacks.show(problem)
        return EXIT_ERROR
    if options.name:
        try:
            target.app.name = options.name
        except errors.InvalidError as wrong:
            print(f"Error: {wrong}", file=sys.stderr)
            return EXIT_USAGE
    elif target.app.name is None and place != targets.STDIN:
        target.app.name = _as_name(module.__name__)
    command = f"lorry run {'-m ' if is_module else ''}{place}::{target.name}"
    return _with_arguments(target, command, words, options)


def _as_name(module: str) -> str | None:
    """Of an app without one: its file's name, as far as the name of an app may look like it."""
    words = re.findall(r"[a-zA-Z0-9_-]+", module.rpartition(".")[2])
    return "-".join(words).lstrip("_-")[:64] or None


def _with_arguments(target: Target, command: str, words: list[str], options: Options) -> int:
    usage = f"Usage: {command} [ARGUMENTS]"
    try:
        signature = _signature(target)
        usage = f"Usage: {command} {signature.usage()}".rstrip()
        rest, values = signature.parse(words)
    except HelpWanted:
        _help(usage, target, signature)
        return 0
    except UsageError as wrong:
        print(f"{usage}\nError: {wrong}", file=sys.stderr)
        return EXIT_USAGE
    return execute(target, rest, values, options)


def _signature(target: Target) -> Signature:
    """Parameters of a method, and in front of them those of its class."""
    own = signature_of(target.raw, skip_first=target.cls is not None)
    if target.cls is None:
        return own
    import inspect
    import typing

    from lorry.cli.arguments import flag_of
    from lorry.sdk.cls import declared_parameters

    raw = target.cls._raw
    assert raw is not None
    hints = typing.get_type_hints(raw)
    taken = {flag.parameter for flag in own.flags}
    extra = []
    for name, declared in declared_parameters(raw).items():
        flag = flag_of(name, hints[name], declared.default if declared.has_default else inspect.Parameter.empty)
        if flag is not None and name not in taken:
            extra.append(flag)
    return replace(own, flags=(*extra, *own.flags))


def _help(usage: str, target: Target, signature: Signature) -> None:
    import inspect

    text = inspect.getdoc(target.raw)
    print(usage + (f"\n\n{text}" if text else ""))
    for flag in signature.flags:
        after = "required" if flag.required else f"default: {flag.default}"
        print(f"  --{flag.name} {flag.shape or '/ --no-' + flag.name}  ({after})")
    for name, hint in signature.unusable:
        print(f"  {name}: {hint} keeps its default: a flag cannot give it")
