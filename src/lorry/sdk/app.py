"""`App`: a group of functions that start, run and stop together."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Sequence
from types import ModuleType
from typing import Any

from lorry.errors import InvalidError, NotFoundError
from lorry.model.records import AppState
from lorry.sdk import option_checks as check
from lorry.sdk import options as opt
from lorry.sdk import source
from lorry.sdk.app_run import Run
from lorry.sdk.channel import drive
from lorry.sdk.cls import Cls, check_class
from lorry.sdk.decorators import Marked, check_flag
from lorry.sdk.function import Function
from lorry.sdk.image import Image
from lorry.sdk.launch import Launched, launch
from lorry.sdk.resumable import check_resumable
from lorry.sdk.steps import Ask, Steps
from lorry.wire import identity, pickling

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")


class LocalEntrypoint:
    """What `@app.local_entrypoint()` makes of a function: it runs here, with the app up."""

    def __init__(self, raw: Callable[..., Any], app: App, name: str) -> None:
        self.raw = raw
        self.app = app
        self.name = name
        self.__name__ = raw.__name__
        self.__doc__ = raw.__doc__
        self.__wrapped__ = raw

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.raw(*args, **kwargs)


class App:
    """Functions register with `@app.function()` and `@app.cls()`; `lorry run`, `.run()` or `.deploy()` start it."""

    def __init__(
        self,
        name: str | None = None,
        *,
        image: Image | None = None,
        secrets: Sequence[Any] = (),
        volumes: dict[str, Any] | None = None,
        include_source: bool = True,
        tags: dict[str, str] | None = None,
    ) -> None:
        check.check_image(image)
        check.check_secrets(secrets)
        check.check_volumes(volumes or {})
        check_flag(include_source, "include_source")
        pickling.by_value = pickling.by_value or not _has_main_file()
        if "__mp_main__" not in sys.modules and "__main__" in sys.modules:
            # Results from a container name the classes of a script's `__main__` so; see runtime.load.
            sys.modules["__mp_main__"] = sys.modules["__main__"]
        self.name = name
        self._image = image
        self._secrets = list(secrets)
        self._volumes = dict(volumes or {})
        self._tags = opt.texts(tags or {}, "tags")
        self._include_source = include_source
        self._functions: dict[str, Function] = {}
        self._classes: dict[str, Cls] = {}
        self._entrypoints: dict[str, LocalEntrypoint] = {}
        self._module: ModuleType | None = None
        self._running: str | None = None

    def __repr__(self) -> str:
        return f"<lorry.App {self.name or '(unnamed)'}>"

    @property
    def name(self) -> str | None:
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise InvalidError(f"an app's name has 1 to 64 letters, digits, '.', '_' or '-': {name!r} does not fit")
        self._name = name

    @property
    def app_id(self) -> str | None:
        """The id of the run that is under way."""
        return self._running

    @property
    def registered_functions(self) -> dict[str, Function]:
        return dict(self._functions)

    @property
    def registered_classes(self) -> dict[str, Cls]:
        return dict(self._classes)

    @property
    def registered_entrypoints(self) -> dict[str, LocalEntrypoint]:
        return dict(self._entrypoints)

    # Decorators

    def function(self, _warn: Any = None, **options: Any) -> Callable[[Any], Function]:
        """See docs/reference/function.md for every parameter; names and defaults are those of SDK.md."""
        where = "@app.function"
        if _warn is not None:
            raise InvalidError("@app.function needs its parentheses: @app.function()")
        options = self._accepted(options, where)

        def decorate(target: Any) -> Function:
            if isinstance(target, type):
                raise InvalidError(f"{target.__name__} is a class: decorate it with @app.cls()")
            if isinstance(target, (Function, Cls)):
                raise InvalidError(f"{target!r} is decorated already: one @app.function() per function, outermost")
            marks = target.__lorry_marks__ if isinstance(target, Marked) else {}
            raw = target.__lorry_function__ if isinstance(target, Marked) else target
            if not callable(raw):
                raise InvalidError(f"@app.function() decorates functions, not {target!r}")
            if {"enter", "exit", "method"} & marks.keys():
                raise InvalidError("@enter, @exit and @method belong to classes decorated with @app.cls()")
            check_resumable(raw, options, marks)
            tag = options.get("name") or _tag(raw)
            function = Function(tag, raw=raw, app=self, is_generator=_generator(raw, options))
            function.options, function.marks = options, marks
            self._register(tag, raw)
            self._functions[tag] = function
            return function

        return decorate

    def cls(self, _warn: Any = None, **options: Any) -> Callable[[type], Cls]:
        """As `function`, for a class whose instances keep state in their containers."""
        where = "@app.cls"
        if _warn is not None:
            raise InvalidError("@app.cls needs its parentheses: @app.cls()")
        if options.get("resumable"):
            raise InvalidError(
                "@app.cls takes no resumable=: a run is one input of a plain function. Call what the class does from a "
                "function with @app.function(resumable=…)"
            )
        options = self._accepted(options, where, opt.NOT_CLS)

        def decorate(target: type) -> Cls:
            if isinstance(target, (Function, Cls)) or not isinstance(target, type):
                raise InvalidError(f"@app.cls() decorates classes, not {target!r}")
            check_class(target)
            cls = Cls(target.__name__, raw=target, app=self)
            cls.options, cls.marks = options, getattr(target, "__lorry_class_marks__", {})
            self._register(cls._tag, target)
            self._classes[cls._tag] = cls
            return cls

        return decorate

    def local_entrypoint(
        self, _warn: Any = None, *, name: str | None = None
    ) -> Callable[[Callable[..., Any]], LocalEntrypoint]:
        """A function of this program that `lorry run` calls with the app up; its parameters are the command's flags."""
        if _warn is not None:
            raise InvalidError("@app.local_entrypoint needs its parentheses: @app.local_entrypoint()")
        check.check_name(name)

        def decorate(raw: Callable[..., Any]) -> LocalEntrypoint:
            tag = name or raw.__qualname__
            if tag in self._entrypoints:
                raise InvalidError(f"there are two local entrypoints called {tag!r}")
            self._note_module(raw)
            entrypoint = self._entrypoints[tag] = LocalEntrypoint(raw, self, tag)
            return entrypoint

        return decorate

    def include(self, other: App) -> App:
        """Take over the functions of another app."""
        for tag, function in other._functions.items():
            self._register(tag, function._raw)
            self._functions[tag] = function
        for tag, cls in other._classes.items():
            self._register(tag, cls._raw)
            self._classes[tag] = cls
        return self

    def _accepted(self, options: dict[str, Any], where: str, excluded: Collection[str] = ()) -> dict[str, Any]:
        given = check.accepted(options, where, excluded)
        check.check_volumes({**self._volumes, **given.get("volumes", {})})  # together with the app's own
        return given

    def _register(self, tag: str, raw: Any) -> None:
        if tag in self._functions or tag in self._classes:
            if identity.container is None and not _interactive(raw):
                raise InvalidError(f"the app has two functions called {tag!r}; give one another name=")
            self._functions.pop(tag, None)
            self._classes.pop(tag, None)
        self._note_module(raw)

    def _note_module(self, raw: Any) -> None:
        if self._module is None:
            self._module = sys.modules.get(raw.__module__)

    # Running

    @staticmethod
    def lookup(
        name: str, *, client: Any = None, environment_name: str | None = None, create_if_missing: bool = False
    ) -> App:
        """The app of that name, for `Sandbox.create(app=…)`. NotFoundError if none runs, unless `create_if_missing`:
        then the first sandbox starts it, and it ends with the last one."""
        app = App(name)
        if not create_if_missing:
            drive(_look_up(name))
        return app

    def run(self, *, client: Any = None, detach: bool = False, show_progress: bool | None = None) -> Run:
        """`with app.run():` starts the app and stops it at the end; `async with` too. `detach=True` lets it go on."""
        return Run(self, detach)

    def deploy(
        self, *, name: str | None = None, environment_name: str | None = None, tag: str = "", client: Any = None
    ) -> App:
        """Start it for good: functions are found with `Function.from_name` and outlive this program.

        A new version replaces the old one once it is ready; the old one's running inputs end in peace."""
        self.name = name or self.name
        if not self.name:
            raise InvalidError('a deployed app needs a name: lorry.App("name") or deploy(name=…)')
        self.deployed_id = drive(launch(self, AppState.DEPLOYED)).app_id
        return self

    deployed_id: str | None = None

    def _attach(self, launched: Launched | None) -> None:
        """Give every handle its number, or take it away again."""
        self._running = launched.app_id if launched else None
        handles = {**self._functions, **{tag: cls._service for tag, cls in self._classes.items()}}
        for tag, function in handles.items():
            if launched:
                function._attach(launched.numbers[tag], launched.specs[tag])
            else:
                function._attach(None, None)


def _look_up(name: str) -> Steps[None]:
    found = yield Ask("app_lookup", {"app": name})
    if found["state"] == AppState.STOPPED.value:
        raise NotFoundError(f"app {name!r} is stopped; create_if_missing=True starts one of that name")


def _has_main_file() -> bool:
    main = sys.modules.get("__main__")
    return source.file_of(main) is not None or identity.container is not None


def _interactive(raw: Any) -> bool:
    """Defined where cells are run again: a second definition replaces the first."""
    return source.file_of(sys.modules.get(getattr(raw, "__module__", ""))) is None


def _generator(raw: Callable[..., Any], options: dict[str, Any]) -> bool:
    declared = options.get("is_generator")
    if declared is not None:
        return bool(declared)
    return inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw)


def _tag(raw: Callable[..., Any]) -> str:
    """`f`, or `Class.f`; a function inside another one keeps its own name."""
    return raw.__qualname__.rpartition("<locals>.")[2]
