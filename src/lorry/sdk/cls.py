"""`Cls`: a class whose instances live in containers."""

from __future__ import annotations

import base64
import inspect
import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lorry.errors import ExecutionError, InvalidError
from lorry.model.function import FunctionSpec
from lorry.sdk.decorators import Marked, Parameter
from lorry.sdk.function import Function, is_generator_function
from lorry.sdk.steps import Ask, Steps, twin

if TYPE_CHECKING:
    from lorry.sdk.app import App


class Cls:
    """What `@app.cls()` makes of a class. Calling it gives an `Obj`; that makes no call to the server."""

    __lorry_handle__ = True

    def __init__(
        self, tag: str, *, raw: type | None = None, app: App | None = None, service: Function | None = None
    ) -> None:
        self._tag = tag
        self._raw = raw
        self._service = service or Function(tag, app=app)
        self.options: dict[str, Any] = {}
        self.marks: dict[str, Any] = {}
        if raw is not None:
            self.__lorry_class__ = raw
            self.__name__ = raw.__name__
            self.__doc__ = raw.__doc__
            self.__module__ = raw.__module__
            self.__qualname__ = raw.__qualname__

    def __repr__(self) -> str:
        return f"<lorry.Cls {self._tag}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Obj:
        if args:
            raise InvalidError(f"{self._tag}(…) takes its parameters by name")
        if self._raw is not None:
            _check_parameters(self._raw, kwargs)
        return Obj(self, kwargs)

    @staticmethod
    def from_name(app_name: str, name: str, *, environment_name: str | None = None) -> Cls:
        """A class of a deployed app. Nothing is asked before its first use."""
        return Cls(name, service=Function.from_name(app_name, name))

    lookup = from_name

    def with_options(self, **changes: Any) -> Cls:
        """The same class with other resources, scaling, retries or time-outs."""
        service = self._service.with_options(**changes)
        return Cls(self._tag, raw=self._raw, service=service)

    def _hydrate(self) -> Steps[Cls]:
        yield from self._service._hydrated()
        return self

    hydrate = twin(_hydrate)

    def methods(self) -> dict[str, Callable[..., Any]]:
        return remote_methods(self._raw) if self._raw is not None else {}

    def __reduce__(self) -> Any:
        return Cls._restore, (self._tag, self._service)

    @staticmethod
    def _restore(tag: str, service: Function) -> Cls:
        return Cls(tag, service=service)

    def __getattr__(self, name: str) -> Any:
        """`Model.method.remote()` without parameters is `Model().method.remote()`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self(), name)


class Obj:
    """An instance with given parameters: its methods are Functions."""

    def __init__(self, cls: Cls, parameters: dict[str, Any]) -> None:
        self._cls = cls
        self._parameters = parameters
        self._functions: dict[str, Function] = {}
        self._local: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = self._cls.methods()
        if name in known or self._cls._raw is None:
            if name not in self._functions:
                self._functions[name] = self._function(name, known.get(name))
            return self._functions[name]
        if name in self._parameters:
            return self._parameters[name]
        declared = getattr(self._cls._raw, name, None)
        if isinstance(declared, Parameter):
            return declared.default
        raise AttributeError(f"{self._cls._tag} has no method or parameter {name!r}; methods: {sorted(known)}")

    def _function(self, name: str, raw: Callable[..., Any] | None) -> Function:
        function = Function(
            self._cls._tag,
            resolve=self._resolve,
            method=name,
            is_generator=raw is not None and is_generator_function(raw),
        )
        if raw is not None:
            function._raw = lambda *args, **kwargs: getattr(self._instance(), name)(*args, **kwargs)
            function.__lorry_function__ = raw
        return function

    def _resolve(self) -> Steps[tuple[int, FunctionSpec]]:
        """The class's own number, or that of its variant with these parameters."""
        service = self._cls._service
        number = yield from service._hydrated()
        assert service._spec is not None
        if self._parameters:
            # pickle, not the user's picklers: only str, int, bytes and bool travel here.
            packed = base64.b64encode(pickle.dumps(dict(sorted(self._parameters.items())), 4)).decode()
            reply = yield Ask("bind", {"number": number, "changes": {"parameters": packed}})
            number = reply["number"]
        return number, service._spec

    def _instance(self) -> Any:
        """The user's object in this process, for `.local`; its enter hooks have run."""
        if self._local is None:
            raw = self._cls._raw
            if raw is None:
                raise ExecutionError(f"{self._cls._tag} was looked up by name: its code is not here")
            self._local = _make_local(raw, self._parameters)
        return self._local


def _make_local(raw: type, parameters: dict[str, Any]) -> Any:
    instance: Any = object.__new__(raw)
    for name, declared in declared_parameters(raw).items():
        setattr(instance, name, parameters.get(name, declared.default))
    marked = [(name, m) for name, m in inspect.getmembers_static(raw) if isinstance(m, Marked)]
    order = {name: position for position, name in enumerate(vars(raw))}
    for name, member in sorted(marked, key=lambda item: order.get(item[0], -1)):
        if "enter" in member.__lorry_marks__:
            getattr(instance, name)()
    return instance


def declared_parameters(raw: type) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for base in reversed(raw.__mro__):
        found.update({name: value for name, value in vars(base).items() if isinstance(value, Parameter)})
    return found


def remote_methods(raw: type) -> dict[str, Callable[..., Any]]:
    """The user's functions behind `@method()`, by name, base classes first."""
    found: dict[str, Callable[..., Any]] = {}
    for base in reversed(raw.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Marked) and "method" in value.__lorry_marks__:
                found[name] = value.__lorry_function__
    return found


def check_class(raw: type) -> None:
    """InvalidError for a class that could not work, at decoration."""
    if "__init__" in vars(raw):
        raise InvalidError(
            f"{raw.__name__} has an __init__: use `x: int = lorry.parameter()` for parameters and "
            "@lorry.enter() for set-up"
        )
    if not remote_methods(raw):
        raise InvalidError(f"{raw.__name__} has no method marked with @lorry.method()")
    types = _parameter_types(raw)
    for name in declared_parameters(raw):
        if types.get(name) not in Parameter.TYPES:
            raise InvalidError(f"parameter {raw.__name__}.{name} needs a type: str, int, bytes or bool")


def _parameter_types(raw: type) -> dict[str, Any]:
    """Types of the declared parameters. Other annotations may name packages that only the image has."""
    named = {kind.__name__: kind for kind in Parameter.TYPES}
    found: dict[str, Any] = {}
    for base in reversed(raw.__mro__):
        for name, hint in _annotations(base).items():
            found[name] = named.get(hint.strip("'\""), hint) if isinstance(hint, str) else hint
    return found


def _annotations(base: type) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(base, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(base)


def _check_parameters(raw: type, given: dict[str, Any]) -> None:
    declared = declared_parameters(raw)
    hints = _parameter_types(raw)
    for name, value in given.items():
        if name not in declared:
            raise InvalidError(f"{raw.__name__} has no parameter {name!r}; it has {sorted(declared) or 'none'}")
        if type(value) is not hints[name]:
            raise InvalidError(f"{raw.__name__}.{name} is {hints[name].__name__}, not {type(value).__name__}")
    for name, parameter in declared.items():
        if name not in given and not parameter.has_default:
            raise InvalidError(f"{raw.__name__}(…) needs a value for {name}")
