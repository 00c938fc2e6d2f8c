"""What each method of the API takes. A request is held against it before its method is called: what is missing or of
another kind is the client's error and named so, and a KeyError inside a method is ours."""

from __future__ import annotations

import base64
import math
import os
import re
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

from lorry.errors import InvalidError
from lorry.ids import call_bytes
from lorry.wire.codec import from_json, from_plain

T = TypeVar("T")
_ID = re.compile(r"[A-Za-z0-9_-]{0,64}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
MOST = 2**63
"""Numbers go into columns of SQLite."""

TAKES = {
    "app_create": "name:text state:text",
    "app_functions": "app_id:id specs:texts",
    "app_ready": "app_id:id",
    "app_detach": "app_id:id",
    "app_stop": "app_id:id reason:text?",
    "app_list": "all:flag? limit:count?",
    "app_lookup": "app:text",
    "app_logs": "app_id:id call:text? container:text? tail:count? follow:flag? only_new:flag?",
    "function_lookup": "app_id:id? app_id|app_name:text tag:text",
    "bind": "number:count changes:object",
    "map_open": "call:call number:count keep:flag subscribe:flag?",
    "map_attach": "call:call",
    "map_close": "call:call",
    "call_result": "call:call chunk:count? index:count? wait:seconds?",
    "call_cancel": "call:call",
    "call_info": "call:call",
    "call_graph": "call:call",
    "blobs_missing": "digests:texts",
    "blob_put": "digest:text offset:count data:bytes last:flag",
    "image_ensure": "spec:object settings:object?",
    "image_ensure's settings": "env:map? secrets:texts? readable:texts?",
    "function_check": "specs:texts",
    "volume_create": "name:text? or_get:flag? volume_id:id?",
    "volume_lookup": "name|volume_id:id",
    "volume_list": "",
    "volume_delete": "volume_id:id",
    "volume_listdir": "volume_id:id path:path recursive:flag?",
    "volume_read": "volume_id:id path:path offset:count",
    "volume_put": "volume_id:id path:path digest:text mode:count? replace:flag?",
    "volume_remove": "volume_id:id path:path recursive:flag?",
    "volume_copy": "volume_id:id sources:paths target:path",
    "volume_sync": "",
    "secret_put": "name:text? values:map replace:flag?",
    "secret_lookup": "name|secret_id:text required_keys:texts?",
    "secret_list": "",
    "secret_delete": "name:text",
    "sandbox_create": "sandbox_id:id app_id:id? app_id|app_name:text spec:text",
    "sandbox_wait": "sandbox_id:id wait:seconds?",
    "sandbox_terminate": "sandbox_id:id",
    "sandbox_info": "sandbox_id:id",
    "sandbox_list": "app_id:id? tags:map?",
    "sandbox_tag": "sandbox_id:id tags:map",
    "sandbox_log": "sandbox_id:id stream:count file:count? offset:count?",
    "exec_start": (
        "container_id:id argv|file:paths env:env? secrets:texts? workdir:path? terminal:size? timeout:seconds?"
    ),
    "exec_read": "exec_id:id offsets:offsets",
    "exec_write": "exec_id:id data:bytes end:flag?",
    "exec_wait": "exec_id:id wait:seconds?",
    "exec_kill": "exec_id:id signal:count?",
    "exec_resize": "exec_id:id terminal:size",
    "server_status": "",
    "server_stop": "force:flag? restart:flag?",
    "container_list": "app_id:id? all:flag?",
    "container_stop": "container_id:id",
    "pending": "app_id:id?",
    "df": "",
    "prune": "all:flag?",
    "usage": "app_id:id?",
    "why": "subject:text",
    "coldstarts": "app_id:id",
    "run_begin": "",
    "run_commit": "run_id:id token:count manifest:digest step:count",
    "run_list": "all:flag? limit:count? app_id:id?",
    "run_show": "run:id points:count?",
    "run_resume": "run:id",
    "run_cancel": "run:id",
    "run_verify": "run:id",
    "image_list": "",
    "image_prune": "",
}
"""Method → name:kind of its parameters. `?`: may be missing, which null is too. `a|b`: at least one of them."""


def checked(method: str, given: Any) -> dict[str, Any]:
    """The parameters as their methods take them, without nulls. InvalidError names what is missing or wrong."""
    if not isinstance(given, dict):
        raise InvalidError(f"{method}: parameters are an object by name, not {reprlib.repr(given)}")
    found = {name: value for name, value in given.items() if value is not None}
    for word in TAKES[method].split():
        names, _, kind = word.partition(":")
        what, convert = KINDS[kind.rstrip("?")]
        several = names.split("|")
        for name in several:
            if name in found:
                try:
                    found[name] = convert(found[name])
                except (TypeError, ValueError) as wrong:
                    raise InvalidError(f"{method}: {name!r} is {what}, not {reprlib.repr(found[name])}") from wrong
        if not kind.endswith("?") and not any(found.get(name) if several[1:] else name in found for name in several):
            raise InvalidError(f"{method} needs the parameter {' or '.join(map(repr, several))}: {what}")
    return found


def fitted(cls: type[T], plain: Any) -> T:
    """A dataclass from what a client sent: its text, or the object itself. InvalidError if it does not fit."""
    try:
        return from_json(cls, plain) if isinstance(plain, str) else from_plain(cls, plain)
    except (TypeError, ValueError) as wrong:
        raise InvalidError(f"this is no {cls.__name__}: {wrong}") from wrong


def _only(kind: type[T]) -> Callable[[Any], T]:
    """bool is an int to Python, not to us."""

    def convert(value: Any) -> T:
        if type(value) is not kind:
            raise TypeError
        return value

    return convert


def _text(value: Any) -> str:
    _only(str)(value).encode()  # JSON can spell half a surrogate pair, which no file and no database takes
    return str(value)


def _id(value: Any) -> str:
    """It names a file or a folder of the server's."""
    if not _ID.fullmatch(_only(str)(value)):
        raise ValueError
    return str(value)


def _digest(value: Any) -> str:
    if not _DIGEST.fullmatch(_only(str)(value)):
        raise ValueError
    return str(value)


def _path(value: Any) -> str:
    """Words and names of files may be bytes that are no UTF-8."""
    if b"\0" in os.fsencode(_only(str)(value)):
        raise ValueError
    return str(value)


def _count(value: Any) -> int:
    if not 0 <= _only(int)(value) < MOST:
        raise ValueError
    return int(value)


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _listed(kind: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    return lambda value: [kind(item) for item in _only(list)(value)]


def _named(kind: Callable[[Any], T]) -> Callable[[Any], dict[str, T]]:
    return lambda value: {_text(name): kind(item) for name, item in _only(dict)(value).items()}


def _size(value: Any) -> list[int]:
    rows, columns = _listed(_count)(value)
    return [rows, columns]


KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "text": ("a text", _text),
    "id": ("an id", _id),
    "texts": ("a list of texts", _listed(_text)),
    "map": ("texts by name", _named(_text)),
    "path": ("a text without zero bytes", _path),
    "paths": ("a list of texts without zero bytes", _listed(_path)),
    "env": ("texts by name", _named(_path)),
    "object": ("an object", _only(dict)),
    "flag": ("true or false", _only(bool)),
    "count": ("a whole number from 0 on", _count),
    "seconds": ("a number of seconds", _seconds),
    "digest": ("64 hex digits", _digest),
    "call": ("the id of a call, `fc-` and 32 hex digits", lambda value: call_bytes(_text(value))),
    "bytes": ("bytes as base64", lambda value: base64.b64decode(_text(value))),
    "size": ("rows and columns", _size),
    "offsets": ("numbers of bytes by name", _named(_count)),
}
