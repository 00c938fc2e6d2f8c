"""From a CodeRef to something callable: import, class instance, `enter` and `exit` hooks."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lorry import errors
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.wire import pickling

MAIN_ALIAS = "__mp_main__"
"""Name under which a file that the client ran as `__main__` is loaded: multiprocessing's own convention, so that
`if __name__ == "__main__"` is false and pickles of its classes are understood on both sides."""


@dataclass(slots=True)
class Loaded:
    """What the runner calls. `methods`: by name; None is the function itself."""

    methods: dict[str | None, Callable[..., Any]] = field(default_factory=dict)
    exits: list[Callable[[], Any]] = field(default_factory=list)
    enters: list[Callable[[], Any]] = field(default_factory=list)
    snaps: list[Callable[[], Any]] = field(default_factory=list)
    """`@enter(snap=True)`: before all other enters, and in the template where there is one."""

    def method(self, name: str | None) -> Callable[..., Any]:
        """InvalidError for one that is not there."""
        try:
            return self.methods[name]
        except KeyError:
            raise errors.InvalidError(
                f"there is no method {name!r}; there are {sorted(map(str, self.methods))}"
            ) from None


def load(spec: FunctionSpec, source_root: str) -> Loaded:
    """Import the user's code and collect what can be called. Whatever the import raises passes through."""
    target = _resolve(spec.code, source_root)
    if spec.kind is FunctionKind.FUNCTION:
        return Loaded({None: _raw_function(target)})
    return _load_class(_raw_class(target), spec)


def _resolve(code: CodeRef, source_root: str) -> Any:
    if code.serialized is not None:
        return _load_serialized(code)
    module = _load_entry(code, source_root) if code.entry else importlib.import_module(code.module)
    target: Any = module
    for name in code.qualname.split("."):
        target = getattr(target, name)
    return target


def _load_serialized(code: CodeRef) -> Any:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert code.serialized is not None
    if code.python != here:
        raise errors.SerializationError(
            f"this function was pickled by Python {code.python} and its container runs {here}. Functions that "
            "travel as bytes (notebook cells, serialized=True, lambdas) need the same minor version: build the "
            "image for it, or put the function into a file"
        )
    return pickling.loads([base64.b64decode(code.serialized)])


def _load_entry(code: CodeRef, source_root: str) -> ModuleType:
    """Run the entry file under its name; as `__main__`'s stand-in if the client ran it as a script."""
    assert code.entry is not None
    path = os.path.join(source_root, code.entry)
    specification = importlib.util.spec_from_file_location(code.module, path)
    if specification is None or specification.loader is None:
        raise errors.InvalidError(f"{code.entry} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[code.module] = module
    if code.module == MAIN_ALIAS:
        sys.modules["__main__"] = module
    specification.loader.exec_module(module)
    return module


def _raw_function(target: Any) -> Callable[..., Any]:
    """Behind the decorator is the user's own function."""
    raw = getattr(target, "__lorry_function__", target)
    if not callable(raw):
        raise errors.InvalidError(f"{target!r} is not a function")
    return raw  # type: ignore[no-any-return]


def _raw_class(target: Any) -> type:
    raw = getattr(target, "__lorry_class__", target)
    if not isinstance(raw, type):
        raise errors.InvalidError(f"{target!r} is not a class")
    return raw


def _load_class(cls: type, spec: FunctionSpec) -> Loaded:
    instance: Any = object.__new__(cls)
    values = pickling.loads([base64.b64decode(spec.parameters)]) if spec.parameters else {}
    for name, default in _parameters(cls).items():
        if name not in values and default is _MISSING:
            raise errors.InvalidError(f"{cls.__name__}() needs a value for its parameter {name!r}")
        setattr(instance, name, values.get(name, default))
    loaded = Loaded()
    for name, member in _members(cls):
        raw = getattr(member, "__lorry_function__", member)
        marks = getattr(member, "__lorry_marks__", {})
        if not callable(raw) or not marks:
            continue
        bound = raw.__get__(instance, cls)
        if "enter" in marks:
            (loaded.snaps if marks["enter"] == "snap" else loaded.enters).append(bound)
        if "exit" in marks:
            loaded.exits.append(bound)
        if "method" in marks:
            loaded.methods[name] = bound
            # Methods call each other through the instance: as plain functions, in this container.
            object.__setattr__(instance, name, _local_method(bound, member))
    return loaded


def _local_method(bound: Callable[..., Any], member: Any) -> Any:
    bind = getattr(member, "__lorry_bind_local__", None)
    return bind(bound) if bind else bound


def _members(cls: type) -> list[tuple[str, Any]]:
    """Definition order, base classes first, overridden names once."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    return list(found.items())


_MISSING = object()


def _parameters(cls: type) -> dict[str, Any]:
    """Names declared with `parameter()`, with their defaults."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if getattr(type(value), "__lorry_parameter__", False):
                found[name] = value.default if value.has_default else _MISSING
    return found


def is_async_callable(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def rebuild_arguments(pieces: Sequence[pickling.Piece]) -> Any:
    """What the caller sent. SerializationError when a class of it cannot be imported or rebuilt here."""
    try:
        return pickling.loads(pieces)
    except Exception as problem:
        raise errors.SerializationError(
            f"the arguments cannot be rebuilt in the container: {type(problem).__name__}: {problem}"
        ) from problem
