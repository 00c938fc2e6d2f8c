"""The one file in which values become bytes and back. Imported by clients and runners, never by the server.

A payload is a list of pieces: the pickle itself, then the large buffers (NumPy arrays and the like) that
pickle protocol 5 hands out of band, so that they are copied once into a shared segment and not at all on
the other side.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Sequence
from typing import Any

from lorry.errors import SerializationError

LARGE = 64 * 1024
"""Buffers of this many bytes or more travel out of band; smaller ones cost less inside the pickle."""

MAX_DEPTH = 16
"""Levels of nesting that the search for a culprit goes down: a list may contain itself."""

Piece = bytes | memoryview
MAX_CULPRIT = 8
by_value = False
"""Set where `__main__` is no file (notebook, REPL): then classes and functions of `__main__` travel whole."""


def dumps(value: Any, *, whole: bool = False) -> tuple[bytes, list[memoryview]]:
    """(pickle, large buffers). SerializationError says which value cannot be pickled.

    `whole`: everything in the pickle, whatever its size."""
    buffers: list[memoryview] = []

    def keep_out(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if whole or raw.nbytes < LARGE:
            return True
        buffers.append(raw)
        return False

    if not by_value:
        try:
            return pickle.dumps(value, 5, buffer_callback=keep_out), buffers
        except Exception:  # lambdas, local classes, …: the slower pickler may know how
            buffers.clear()
    return _cloudpickle(value, keep_out), buffers


def _cloudpickle(value: Any, keep_out: Any) -> bytes:
    from lorry._vendor import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value, 5, buffer_callback=keep_out))
    except Exception as problem:
        raise SerializationError(
            f"cannot be pickled: {_culprit(value)}: {type(problem).__name__}: {problem}"
        ) from problem


def _culprit(value: Any, depth: int = 0) -> str:
    """The innermost element that fails, found by trying the parts of tuples, lists and dicts, a few levels down."""
    from lorry._vendor import cloudpickle

    parts: Sequence[tuple[str, Any]] = ()
    if depth == MAX_CULPRIT:
        return "…"
    if isinstance(value, (tuple, list)):
        parts = [(f"element {i}", part) for i, part in enumerate(value)]
    elif isinstance(value, dict):
        parts = [(f"{key!r}", part) for key, part in value.items()]
    for name, part in parts:
        try:
            cloudpickle.dumps(part)
        except Exception:
            return f"{name} → {_culprit(part, depth + 1)}"
    return f"a {type(value).__module__}.{type(value).__qualname__}{_hint(value)}"


def _hint(value: Any) -> str:
    if isinstance(value, types.CoroutineType):
        return " (make the function `async def` and await it)"
    if isinstance(value, types.GeneratorType | types.AsyncGeneratorType):
        return " (return a list, or `yield` in the function itself and call it with .remote_gen)"
    return ""


def loads(pieces: Sequence[Piece]) -> Any:
    """The value. Whatever the user's classes raise while they are rebuilt passes through."""
    return pickle.loads(pieces[0], buffers=pieces[1:])  # noqa: S301 - user code's own bytes, see the module text


def dump_function(function: Any) -> bytes:
    """A callable by value, with what it closes over. Needs the same Python minor version to load."""
    from lorry._vendor import cloudpickle

    target = io.BytesIO()
    try:
        cloudpickle.CloudPickler(target, 5).dump(function)
    except Exception as problem:
        raise SerializationError(f"function {function!r} cannot be serialized: {problem}") from problem
    return target.getvalue()
