"""Command-line flags made from a function's parameters. Pure: strings in, keyword arguments out."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

OPTIONS_OF_RUN = ("-q", "--quiet", "-d", "--detach", "-m", "-n", "--name")


class UsageError(Exception):
    """The command line does not fit the function; the message says where."""


class HelpWanted(Exception):
    """`--help` stood among the function's arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One parameter as a flag. `choices`: the values of a Literal."""

    parameter: str
    convert: Callable[[str], Any]
    shape: str
    """What usage shows in place of a value; empty for a switch."""
    required: bool
    default: Any = None
    choices: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return self.parameter.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        return not self.shape

    def usage(self) -> str:
        text = f"--{self.name}/--no-{self.name}" if self.is_switch else f"--{self.name} {self.shape}"
        return text if self.required else f"[{text}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """All flags of what is run. `rest`: name of its `*args`, which takes everything that is no flag."""

    flags: tuple[Flag, ...]
    rest: str | None = None
    unusable: tuple[tuple[str, str], ...] = ()
    """(parameter, type) of parameters that have a default and no form on the command line."""

    def usage(self) -> str:
        words = [flag.usage() for flag in self.flags]
        return " ".join([*words, f"[{self.rest.upper()}...]"] if self.rest else words)

    def parse(self, given: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Positional and keyword arguments. UsageError, HelpWanted."""
        if self.rest and not self.flags:
            return list(given), {}  # the function has a parser of its own
        if any(word in ("--help", "-h") for word in given[: _end(given)]):
            raise HelpWanted
        values: dict[str, Any] = {}
        rest: list[str] = []
        words = list(given)
        while words:
            word = words.pop(0)
            if word == "--":
                rest += words
                break
            if not word.startswith("--"):
                rest.append(word)
                continue
            flag, value = self._match(word, words)
            values[flag.parameter] = value
        if rest and not self.rest:
            raise UsageError(_unexpected(rest[0], self.flags))
        for flag in self.flags:
            if flag.required and flag.parameter not in values:
                raise UsageError(f"--{flag.name} is missing")
        return rest, values

    def _match(self, word: str, following: list[str]) -> tuple[Flag, Any]:
        name, has_value, text = word[2:].partition("=")
        name = name.replace("_", "-")
        for flag in self.flags:
            if flag.is_switch and not has_value and name in (flag.name, f"no-{flag.name}"):
                return flag, name == flag.name
            if name == flag.name:
                if not has_value:
                    if not following:
                        raise UsageError(f"--{name} needs a value: {flag.shape}")
                    text = following.pop(0)
                return flag, _converted(flag, text)
        raise UsageError(_unknown(word, name, self.flags))


def _end(words: Sequence[str]) -> int:
    return words.index("--") if "--" in words else len(words)


def _converted(flag: Flag, text: str) -> Any:
    try:
        value = flag.convert(text)
    except ValueError:
        raise UsageError(f"--{flag.name} takes {flag.shape or 'true or false'}, not {text!r}") from None
    return value


def _unknown(word: str, name: str, flags: Sequence[Flag]) -> str:
    if word in OPTIONS_OF_RUN:
        return f"{word} is an option of `lorry run` and stands before the file"
    close = difflib.get_close_matches(name, [flag.name for flag in flags], 1)
    return f"there is no --{name}" + (f"; did you mean --{close[0]}?" if close else "")


def _unexpected(word: str, flags: Sequence[Flag]) -> str:
    if word in OPTIONS_OF_RUN:
        return f"{word} is an option of `lorry run` and stands before the file"
    hint = f"; arguments are given by name, as in --{flags[0].name} {word}" if flags else ": it takes no arguments"
    return f"unexpected argument {word!r}{hint}"


# From a Python signature


def signature_of(raw: Callable[..., Any], *, skip_first: bool = False) -> Signature:
    """The flags of a function; `skip_first` leaves out a method's `self`. UsageError if it cannot be run so."""
    parameters = list(inspect.signature(raw).parameters.values())[1 if skip_first else 0 :]
    flags: list[Flag] = []
    unusable: list[tuple[str, str]] = []
    rest = None
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest = parameter.name
        elif parameter.kind is not parameter.VAR_KEYWORD:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise UsageError(f"parameter {parameter.name} is positional-only: flags give values by name")
            hint = _hint(raw, parameter)
            flag = flag_of(parameter.name, hint, parameter.default)
            if flag is not None:
                flags.append(flag)
            elif parameter.default is parameter.empty:
                raise UsageError(f"parameter {parameter.name} is {_named(hint)}, which a flag cannot give")
            else:
                unusable.append((parameter.name, _named(hint)))
    return Signature(flags=tuple(flags), rest=rest, unusable=tuple(unusable))


def _hint(raw: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The annotation, evaluated if it is text; text that names what only the image has stays text."""
    hint = parameter.annotation
    if isinstance(hint, str):
        try:
            hint = eval(hint, getattr(raw, "__globals__", {}))  # noqa: S307 - the user's own annotation
        except Exception:
            return hint
    if hint is parameter.empty:
        default = parameter.default
        return str if default is parameter.empty or default is None else type(default)
    return hint


def flag_of(name: str, hint: Any, default: Any = inspect.Parameter.empty) -> Flag | None:
    """None for a type that has no form on the command line."""
    required = default is inspect.Parameter.empty
    hint = _without_none(hint)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        by_text = {str(choice): choice for choice in choices}
        return Flag(
            parameter=name,
            convert=lambda text: _one_of(by_text, text),
            shape="|".join(by_text),
            required=required,
            default=default,
            choices=choices,
        )
    if isinstance(hint, type) and hint in _CONVERTERS:
        convert, shape = _CONVERTERS[hint]
        return Flag(parameter=name, convert=convert, shape=shape, required=required, default=default)
    return None


def _without_none(hint: Any) -> Any:
    """`Optional[X]` and `X | None` are X; `Annotated[X, …]` is X."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _without_none(typing.get_args(hint)[0])
    if origin is typing.Union or origin is types.UnionType:
        left = [part for part in typing.get_args(hint) if part is not type(None)]
        if len(left) == 1:
            return _without_none(left[0])
    return str if hint is typing.Any else hint


def _one_of(by_text: dict[str, Any], text: str) -> Any:
    if text not in by_text:
        raise ValueError(text)
    return by_text[text]


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(text)


_CONVERTERS: dict[type, tuple[Callable[[str], Any], str]] = {
    str: (str, "TEXT"),
    int: (int, "INTEGER"),
    float: (float, "NUMBER"),
    bool: (_boolean, ""),
    datetime: (datetime.fromisoformat, "YYYY-MM-DD[THH:MM:SS]"),
    date: (date.fromisoformat, "YYYY-MM-DD"),
    Path: (Path, "PATH"),
}


def _named(hint: Any) -> str:
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
