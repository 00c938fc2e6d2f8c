"""A function that runs while an image is built: what is sent, and what decides whether it runs again."""

from __future__ import annotations

import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorry.errors import InvalidError
from lorry.wire import pickling

_PLAIN = (str, bytes, int, float, bool, type(None), tuple, list, dict, set, frozenset)


def pickled(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The call by value, with what the function uses of its own file. Needs the same Python minor version."""
    from lorry._vendor import cloudpickle

    module = sys.modules.get(function.__module__)
    by_value = module is not None and module.__name__ not in cloudpickle.list_registry_pickle_by_value()
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        return pickling.dump_function((function, tuple(args), dict(kwargs)))
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)


def content_key(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Changes with the function's source, the functions of its file that it calls, the plain values that it uses, and
    its arguments. Not with the rest of the file."""
    parts: list[str] = []
    _describe(function, parts, set())
    parts.append(hashlib.sha256(pickling.dump_function((tuple(args), dict(kwargs)))).hexdigest())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _describe(function: Callable[..., Any], parts: list[str], seen: set[int]) -> None:
    if id(function) in seen or not isinstance(function, types.FunctionType):
        return
    seen.add(id(function))
    try:
        parts.append(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):  # typed at a prompt
        parts.append(function.__code__.co_code.hex() + repr(function.__code__.co_consts))
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType) and value.__module__ == function.__module__:
            _describe(value, parts, seen)
        elif isinstance(value, _PLAIN) and name in function.__globals__:
            parts.append(f"{name}={value!r}")


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def check_function(function: object) -> Callable[..., Any]:
    if isinstance(function, types.FunctionType):
        return function
    hint = " Give the function before @app.function makes a handle of it." if hasattr(function, "remote") else ""
    raise InvalidError(f"Image.run_function takes a plain function, not {function!r}.{hint}")
