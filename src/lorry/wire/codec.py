"""Frozen dataclasses ↔ JSON. Used at the wire and for specs in the store, nowhere else.

Types that occur: str, int, float, bool, bytes (as base64), None, StrEnum, IntEnum, tuples of these, nested
dataclasses, and `X | None`. Unknown keys are ignored, so that a newer peer may send more.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import functools
import json
import reprlib
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> str:
    """Compact JSON with sorted keys: equal values give equal text, which digests and the store rely on."""
    return json.dumps(to_plain(value), separators=(",", ":"), sort_keys=True)


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples, enums and bytes as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return value


def from_json(cls: type[T], text: str | bytes) -> T:
    """The dataclass that `to_json` wrote. ValueError or TypeError if it does not fit."""
    return from_plain(cls, json.loads(text))


def from_plain(cls: type[T], plain: Any) -> T:
    return typing.cast(T, _build(cls, plain))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(kind: Any, plain: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        _check(plain, dict)
        known = {key: _build(hints[key], item) for key, item in plain.items() if key in hints}
        return kind(**known)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return None if plain is None else _build(_only(kind), plain)
    if origin is tuple:
        _check(plain, list)
        arguments = typing.get_args(kind)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_build(arguments[0], item) for item in plain)
        return tuple(_build(a, item) for a, item in zip(arguments, plain, strict=True))
    if kind is bytes:
        _check(plain, str)
        return base64.b64decode(plain)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(plain)
    if kind is float and type(plain) is int:
        return float(plain)
    if kind in (str, int, float, bool):
        _check(plain, kind)
    return plain


def _check(plain: Any, kind: type) -> None:
    if type(plain) is not kind:  # not isinstance: bool is an int
        raise TypeError(f"{reprlib.repr(plain)} is no {kind.__name__}")


def _only(union: Any) -> Any:
    members = [member for member in typing.get_args(union) if member is not type(None)]
    assert len(members) == 1, f"the codec knows only X | None, not {union}"
    return members[0]
