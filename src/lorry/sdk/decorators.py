"""Decorators below `@app.function` and `@app.cls`: `enter`, `exit`, `method`, `concurrent`, `parameter`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeGuard

from lorry.errors import InvalidError

_NOTHING = object()


class Marked:
    """A function with marks: what `@app.function` or `@app.cls` finds below itself."""

    def __init__(self, raw: Callable[..., Any], marks: dict[str, Any]) -> None:
        self.__lorry_function__ = raw
        self.__lorry_marks__ = marks
        self.__name__ = getattr(raw, "__name__", "")
        self.__doc__ = raw.__doc__
        self.__wrapped__ = raw

    @staticmethod
    def __lorry_bind_local__(bound: Callable[..., Any]) -> LocalMethod:
        return LocalMethod(bound)

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else LocalMethod(self.__lorry_function__.__get__(instance, owner))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__lorry_function__(*args, **kwargs)


class LocalMethod:
    """A method reached through `self` inside the class: `self.f(…)` and `self.f.local(…)` run here."""

    def __init__(self, bound: Callable[..., Any]) -> None:
        self._bound = bound
        self.local = bound

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._bound(*args, **kwargs)


def _mark(target: Any, decorator: str, **marks: Any) -> Marked:
    from lorry.sdk.cls import Cls
    from lorry.sdk.function import Function

    if isinstance(target, (Function, Cls)):
        raise InvalidError(
            f"@{decorator} must stand below @app.function() or @app.cls(), which are always the outermost decorators"
        )
    if isinstance(target, type):
        if decorator != "concurrent":
            raise InvalidError(f"@{decorator} is for methods, not for the class {target.__name__}")
        earlier = getattr(target, "__lorry_class_marks__", {})
        setattr(target, "__lorry_class_marks__", {**earlier, **marks})  # noqa: B010 - a class has no such attribute
        return target  # type: ignore[return-value]
    if isinstance(target, Marked):
        return Marked(target.__lorry_function__, {**target.__lorry_marks__, **marks})
    if not callable(target):
        raise InvalidError(f"@{decorator} needs its parentheses: @lorry.{decorator}(…)")
    return Marked(target, marks)


def _forgot_parentheses(decorator: str, value: Any) -> None:
    if callable(value):
        raise InvalidError(f"@lorry.{decorator} needs its parentheses: @lorry.{decorator}()")


def check_flag(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise InvalidError(f"{name} must be True or False, not {value!r}")


def enter(_warn: Any = None, *, snap: bool = False) -> Callable[[Any], Any]:
    """Run once per container, before its first input. `snap=True`: state that a template may share."""
    _forgot_parentheses("enter", _warn)
    check_flag(snap, "snap")
    return lambda target: _mark(target, "enter", enter="snap" if snap else "plain")


def exit(_warn: Any = None) -> Callable[[Any], Any]:
    """Run once per container, after its last input; has 30 s."""
    _forgot_parentheses("exit", _warn)
    return lambda target: _mark(target, "exit", exit=True)


def method(_warn: Any = None, *, is_generator: bool | None = None) -> Callable[[Any], Any]:
    """A method that can be called remotely."""
    _forgot_parentheses("method", _warn)
    if is_generator is not None:
        check_flag(is_generator, "is_generator")
    return lambda target: _mark(target, "method", method={"is_generator": is_generator})


def concurrent(
    _warn: Any = None, *, max_inputs: int | None = None, target_inputs: int | None = None
) -> Callable[[Any], Any]:
    """Several inputs at a time in one container: async functions on one loop, others in threads.

    The autoscaler aims at `target_inputs` (default `max_inputs`) per container."""
    _forgot_parentheses("concurrent", _warn)
    if not _is_count(max_inputs):
        raise InvalidError(f"max_inputs={max_inputs!r} must be a whole number of at least 1")
    if target_inputs is not None and not (_is_count(target_inputs) and target_inputs <= max_inputs):
        raise InvalidError(f"target_inputs={target_inputs!r} must be between 1 and max_inputs={max_inputs}")
    marks = {"max_inputs": max_inputs, "target_inputs": target_inputs}
    return lambda target: _mark(target, "concurrent", concurrent=marks)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _later(name: str) -> Callable[..., NoReturn]:
    def decorator(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise InvalidError(f"@lorry.{name} is not in this version yet")

    decorator.__name__ = name
    return decorator


batched = _later("batched")
clustered = _later("clustered")
fastapi_endpoint = _later("fastapi_endpoint")
asgi_app = _later("asgi_app")
wsgi_app = _later("wsgi_app")
web_server = _later("web_server")


class Parameter:
    """A constructor parameter of a class: `x: int = lorry.parameter(default=1)`."""

    __lorry_parameter__ = True
    TYPES = (str, int, bytes, bool)

    def __init__(self, default: Any, init: bool) -> None:
        self.has_default = default is not _NOTHING
        self.default = None if default is _NOTHING else default
        self.init = init


def parameter(*, default: Any = _NOTHING, init: bool = True) -> Any:
    """Declared in the class body with a type of str, int, bytes or bool; each set of values has its own containers."""
    if default is not _NOTHING and default is not None and not isinstance(default, Parameter.TYPES):
        raise InvalidError(f"a parameter is str, int, bytes or bool, not {type(default).__name__}")
    return Parameter(default, init)
