"""`App`: a group of functions that start, run and stop together."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from lorry.errors import ExecutionError, InvalidError
from lorry.model.function import FunctionKind, FunctionSpec, VolumeMount
from lorry.model.image import ImageSpec
from lorry.model.records import AppState
from lorry.sdk import display, source
from lorry.sdk import options as opt
from lorry.sdk.build_spec import Files, check_volumes, function_spec, secret_ids, volume_mounts
from lorry.sdk.channel import drive
from lorry.sdk.cls import Cls, check_class
from lorry.sdk.decorators import Marked
from lorry.sdk.function import Function
from lorry.sdk.image import Image
from lorry.sdk.steps import Ask, Steps
from lorry.sdk.upload import upload_bytes, upload_missing
from lorry.wire import identity, pickling
from lorry.wire.codec import to_json, to_plain

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
        if name is not None and not _NAME.fullmatch(name):
            raise InvalidError(f"an app's name has 1 to 64 letters, digits, '.', '_' or '-': {name!r} does not fit")
        if image is not None and not isinstance(image, Image):
            raise InvalidError(f"image= takes a lorry.Image, not {image!r}")
        pickling.by_value = pickling.by_value or not _has_main_file()
        if "__mp_main__" not in sys.modules and "__main__" in sys.modules:
            # Results from a container name the classes of a script's `__main__` so; see runtime.load.
            sys.modules["__mp_main__"] = sys.modules["__main__"]
        self.name = name
        self._image = image
        self._secrets = list(secrets)
        self._volumes = dict(volumes or {})
        self._tags = dict(tags or {})
        self._include_source = include_source
        self._functions: dict[str, Function] = {}
        self._classes: dict[str, Cls] = {}
        self._entrypoints: dict[str, LocalEntrypoint] = {}
        self._module: ModuleType | None = None
        self._running: str | None = None

    def __repr__(self) -> str:
        return f"<lorry.App {self.name or '(unnamed)'}>"

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
        opt.check_names(options, where)
        opt.warn_later(options, where)
        self._check_early(options)

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
        opt.check_names(options, where, opt.NOT_CLS)
        opt.warn_later(options, where)
        self._check_early(options)

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

    def _check_early(self, options: dict[str, Any]) -> None:
        """What can be known at decoration: ranges, units, types."""
        opt.resources(options)
        opt.scaling(options)
        opt.retry_policy(options.get("retries"))
        opt.sequence(options.get("secrets"), "secrets")
        check_volumes({**self._volumes, **(options.get("volumes") or {})})
        for name in ("timeout", "startup_timeout"):
            if options.get(name) is not None:
                opt.seconds(options[name], name)
        image = options.get("image")
        if image is not None and not isinstance(image, Image):
            raise InvalidError(f"image= takes a lorry.Image, not {image!r}")

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

    @contextlib.contextmanager
    def _started(self, detach: bool) -> Iterator[App]:
        if self._running is not None:
            raise ExecutionError(f"{self!r} runs already")
        drive(self._start(AppState.EPHEMERAL))
        shown = display.current()
        follower = display.LogFollower(self._running, shown) if shown and self._running else None
        stop = True
        try:
            yield self
            stop = not detach
        except BaseException:
            stop = not detach or not isinstance(sys.exc_info()[1], KeyboardInterrupt)
            raise
        finally:
            if stop:
                self._stop("its program ended")
                if follower:
                    follower.close()
            else:
                drive(self._detach())
            self._attach(None, {}, {})

    def run(self, *, client: Any = None, detach: bool = False, show_progress: bool | None = None) -> _Run:
        """`with app.run():` starts the app and stops it at the end; `async with` too. `detach=True` lets it go on."""
        return _Run(self, detach)

    def _stop(self, reason: str) -> None:
        app_id = self._running
        with _uninterrupted():
            drive(_ask_once("app_stop", {"app_id": app_id, "reason": reason}))

    def _detach(self) -> Steps[None]:
        yield Ask("app_detach", {"app_id": self._running})

    def deploy(
        self, *, name: str | None = None, environment_name: str | None = None, tag: str = "", client: Any = None
    ) -> App:
        """Start it for good: functions are found with `Function.from_name` and outlive this program.

        A new version replaces the old one once it is ready; the old one's running inputs end in peace."""
        self.name = name or self.name
        if not self.name:
            raise InvalidError('a deployed app needs a name: lorry.App("name") or deploy(name=…)')
        drive(self._start(AppState.DEPLOYED))
        app_id = self._running
        self._attach(None, {}, {})
        self.deployed_id = app_id
        return self

    deployed_id: str | None = None

    def _start(self, state: AppState) -> Steps[None]:
        """Everything that the server needs before the first call."""
        files = Files()
        manifest_digest = yield from self._ship(files)
        images = self._resolve_images(files)
        yield from upload_missing(files.paths)
        yield from self._build_images(list(images.values()))
        specs = yield from self._specs(images, manifest_digest)
        texts = [to_json(spec) for spec in specs]
        yield Ask("function_check", {"specs": texts})
        reply = yield Ask("app_create", {"name": self.name or "unnamed", "state": state.value})
        numbers = yield Ask("app_functions", {"app_id": reply["app_id"], "specs": texts})
        self._attach(reply["app_id"], numbers["numbers"], {spec.tag: spec for spec in specs})
        if state is AppState.DEPLOYED:
            yield Ask("app_ready", {"app_id": reply["app_id"]})

    def _ship(self, files: Files) -> Steps[str]:
        """The source snapshot; its manifest's digest."""
        if not self._include_source or self._module is None:
            return ""
        snapshot = source.take(self._module)
        manifest = snapshot.manifest()
        for name, digest, _mode in manifest:
            files.paths[digest] = snapshot.files[name]
        import json

        return (yield from upload_bytes(json.dumps(manifest).encode()))

    def _resolve_images(self, files: Files) -> dict[int, ImageSpec]:
        """By identity of the Image object, each resolved once."""
        found: dict[int, ImageSpec] = {}
        for options in self._all_options():
            image = options.get("image") or self._image or _default_image()
            if id(image) not in found:
                found[id(image)] = image.spec(files.digest)
        return found

    def _all_options(self) -> list[dict[str, Any]]:
        handles: list[Function | Cls] = [*self._functions.values(), *self._classes.values()]
        return [handle.options for handle in handles]

    def _build_images(self, images: list[ImageSpec]) -> Steps[None]:
        from lorry.images.indexes import client_index_settings, with_variables

        settings = client_index_settings(os.environ, Path.home(), Path(sys.prefix))
        for image in images:
            shown = display.current()

            def show(event: dict[str, Any], shown: display.Display | None = shown) -> None:
                if shown:
                    shown.build(event["line"])

            own = with_variables(settings, image, os.environ)
            params = {"spec": to_plain(image), "settings": to_plain(own)}
            built = yield Ask("image_ensure", params, on_event=show)
            if not built["cached"] and image.installs:
                display.note(f"Built image {built['digest'][:12]} in {built['seconds']:.1f} s")

    def _specs(self, images: dict[int, ImageSpec], manifest: str) -> Steps[list[FunctionSpec]]:
        specs = []
        app_secrets = yield from secret_ids(self._secrets)
        for tag, function in self._functions.items():
            specs.append((yield from self._spec(tag, function, function._raw, {}, images, manifest, app_secrets)))
        for tag, cls in self._classes.items():
            specs.append((yield from self._spec(tag, cls, cls._raw, cls.methods(), images, manifest, app_secrets)))
        return specs

    def _spec(
        self,
        tag: str,
        handle: Function | Cls,
        raw: Any,
        methods: dict[str, Any],
        images: dict[int, ImageSpec],
        manifest: str,
        app_secrets: tuple[str, ...],
    ) -> Steps[FunctionSpec]:
        given = {**handle.options, "tags": {**self._tags, **(handle.options.get("tags") or {})}}
        mounts: tuple[VolumeMount, ...] = yield from volume_mounts({**self._volumes, **(given.get("volumes") or {})})
        own_secrets = yield from secret_ids(given.get("secrets") or ())
        image = given.get("image") or self._image or _default_image()
        return function_spec(
            tag=tag,
            kind=FunctionKind.CLASS if isinstance(handle, Cls) else FunctionKind.FUNCTION,
            raw=raw,
            given=given,
            marks=handle.marks,
            methods=methods,
            image=images[id(image)],
            mounts=mounts,
            secrets=(*app_secrets, *own_secrets),
            source=manifest if given.get("include_source", True) else "",
        )

    def _attach(self, app_id: str | None, numbers: dict[str, int], specs: dict[str, FunctionSpec]) -> None:
        """Give every handle its number, or take it away again."""
        self._running = app_id
        handles = {**self._functions, **{tag: cls._service for tag, cls in self._classes.items()}}
        for tag, function in handles.items():
            function._attach(numbers.get(tag), specs.get(tag))


class _Run:
    """`app.run()`: a context manager of both kinds."""

    def __init__(self, app: App, detach: bool) -> None:
        self._context = app._started(detach)

    def __enter__(self) -> App:
        return self._context.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._context.__exit__(kind, problem, trace)

    async def __aenter__(self) -> App:
        import asyncio

        return await asyncio.to_thread(self._context.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        import asyncio

        return await asyncio.to_thread(self._context.__exit__, kind, problem, trace)


def _ask_once(method: str, params: dict[str, Any]) -> Steps[Any]:
    return (yield Ask(method, params))


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C while the app is being stopped must not leave containers behind; a third one may."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def once(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_default: list[Image] = []


def _default_image() -> Image:
    if not _default:
        _default.append(Image.debian_slim())
    return _default[0]


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
