"""`Function`: a handle on code that runs in containers. Making one makes no call; using it does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from lorry.errors import ExecutionError, InvalidError
from lorry.model.function import FunctionSpec
from lorry.sdk import options as opt
from lorry.sdk.call import FunctionCall
from lorry.sdk.results import value_of
from lorry.sdk.steps import Ask, Send, Steps, twin
from lorry.wire import identity, pickling
from lorry.wire.codec import from_json, to_plain
from lorry.wire.frames import Kind

if TYPE_CHECKING:
    from lorry.sdk.app import App


class Function:
    """A function of an app, a method of a class, or one looked up by name."""

    __lorry_handle__ = True

    def __init__(
        self,
        tag: str,
        *,
        raw: Callable[..., Any] | None = None,
        app: App | None = None,
        resolve: Callable[[], Steps[tuple[int, FunctionSpec]]] | None = None,
        method: str | None = None,
        is_generator: bool = False,
    ) -> None:
        self._tag = tag
        self._raw = raw
        self._app = app
        self._resolve = resolve
        self._method = method
        self._number: int | None = None
        self._spec: FunctionSpec | None = None
        self.is_generator = is_generator
        self.is_resumable = False
        """Known once its spec is."""
        self.options: dict[str, Any] = {}
        """The parameters of its decorator."""
        self.marks: dict[str, Any] = {}
        """What inner decorators (`@concurrent`, …) said."""
        if raw is not None:
            self.__lorry_function__ = raw
            self.__name__ = getattr(raw, "__name__", tag)
            self.__doc__ = raw.__doc__
            self.__module__ = raw.__module__
            self.__wrapped__ = raw

    def __repr__(self) -> str:
        return f"<lorry.Function {self._tag}{'.' + self._method if self._method else ''}>"

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        name = self._method or self._tag
        raise TypeError(
            f"{name} is a Lorry function: {name}.remote(…) runs it in a container, {name}.local(…) runs it here, "
            f"{name}.spawn(…) and {name}.map(…) run it in the background and over many inputs"
        )

    # Identity

    @property
    def object_id(self) -> str | None:
        """Text form of the function's number on the server; None before hydration."""
        return None if self._number is None else f"fu-{self._number}"

    @property
    def info(self) -> FunctionSpec | None:
        return self._spec

    def get_raw_f(self) -> Callable[..., Any]:
        """The user's own function. ExecutionError for one that was looked up by name."""
        if self._raw is None:
            raise ExecutionError(f"{self._tag} was looked up by name: its code is not here")
        return self._raw

    def _hydrated(self) -> Steps[int]:
        """Its number; looked up at first use."""
        if self._number is not None:
            return self._number
        if self._resolve is not None:
            number, spec = yield from self._resolve()
            self._attach(number, spec)
            self.is_generator = _is_generator(spec, self._method, self.is_generator)
            return number
        if identity.container is not None:
            reply = yield Ask("function_lookup", {"app_id": identity.container.app_id, "tag": self._tag})
            self._attach(reply["number"], from_json(FunctionSpec, reply["spec"]))
            return int(reply["number"])
        raise ExecutionError(
            f"{self._tag} belongs to an app that is not running. Use `lorry run`, or `with app.run():` around the "
            f"call, or lorry.Function.from_name(…) for a deployed app"
        )

    def _attach(self, number: int | None, spec: FunctionSpec | None) -> None:
        """The app started (or stopped: None)."""
        self._number, self._spec = number, spec
        self.is_resumable = spec is not None and spec.resumable is not None

    def _hydrate(self) -> Steps[Function]:
        yield from self._hydrated()
        return self

    hydrate = twin(_hydrate)

    @staticmethod
    def from_name(app_name: str, name: str, *, environment_name: str | None = None) -> Function:
        """A function of a deployed app. Nothing is asked before its first use; then NotFoundError if it is missing."""

        def resolve() -> Steps[tuple[int, FunctionSpec]]:
            reply = yield Ask("function_lookup", {"app_name": app_name, "tag": name})
            return reply["number"], from_json(FunctionSpec, reply["spec"])

        handle = Function(name, resolve=resolve)
        handle._origin = ("from_name", (app_name, name))
        return handle

    lookup = from_name
    _origin: tuple[str, tuple[Any, ...]] | None = None

    def __reduce__(self) -> Any:
        """Handles travel by what they name, never with their code."""
        if self._number is None and self._origin is None:
            raise ExecutionError(f"{self._tag} cannot be sent anywhere before its app runs")
        named = (self._tag, self._number, self._method, self.is_generator, self._origin)
        return _function_from_number, (*named, self.is_resumable)

    def with_options(self, **changes: Any) -> Function:
        """The same function with other resources, scaling, retries or time-outs, and containers of its own."""
        from lorry.sdk.option_checks import check_values, given_values

        allowed = {"cpu", "memory", "gpu", "env", "timeout", "retries", "min_containers", "max_containers"}
        allowed |= {"buffer_containers", "scaledown_window", "secrets", "volumes", "startup_timeout"}
        for name in changes:
            if name not in allowed:
                opt.check_names([name], "with_options", opt.KNOWN - allowed)
        changes = given_values(changes)
        check_values(changes)
        parent = self

        def resolve() -> Steps[tuple[int, FunctionSpec]]:
            number = yield from parent._hydrated()
            plain = yield from spec_changes(changes, parent._spec)
            reply = yield Ask("bind", {"number": number, "changes": plain})
            assert parent._spec is not None
            return reply["number"], parent._spec

        return Function(self._tag, raw=self._raw, resolve=resolve, method=self._method, is_generator=self.is_generator)

    # Calls

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Run it here, in this process. A generator or coroutine function gives its generator or coroutine."""
        return self.get_raw_f()(*args, **kwargs)

    def _payload(self, args: Any, kwargs: Any) -> tuple[bytes, list[memoryview]]:
        return pickling.dumps((self._method, args, kwargs))

    def _remote(self, *args: Any, **kwargs: Any) -> Steps[Any]:
        """Run it in a container and wait. The value, or the original exception.

        Raises ExecutionError outside a running app, FunctionTimeoutError, CapacityError, ContainerLostError."""
        number = self._number or (yield from self._hydrated())
        if self.is_generator:
            raise InvalidError(f"{self._tag} is a generator: use .remote_gen(…)")
        if self.is_resumable:  # through the journal: it does not depend on this process
            return (yield from (yield from self._spawn(*args, **kwargs))._get())
        answer = yield Send(Kind.CALL, number, pickling.dumps((self._method, args, kwargs)))
        return value_of(answer.frame.status, answer.pieces)

    remote = twin(_remote)

    def _spawn(self, *args: Any, **kwargs: Any) -> Steps[FunctionCall]:
        """Start it and return at once; the input is on disk when this returns."""
        number = yield from self._hydrated()
        if self.is_generator:
            raise InvalidError(f"{self._tag} is a generator: it cannot be spawned; use .remote_gen(…)")
        answer = yield Send(Kind.SPAWN, number, self._payload(args, kwargs))
        if answer.frame.status:
            value_of(answer.frame.status, answer.pieces)
        return FunctionCall(answer.frame.call)

    spawn = twin(_spawn)

    @property
    def remote_gen(self) -> Any:
        """Run a generator in a container and iterate over what it yields: `for`, or `async for` on `.aio`."""
        from lorry.sdk.generator import RemoteGenerator

        return RemoteGenerator(self)

    # Many inputs

    @property
    def map(self) -> Any:
        """`map(*iterables, kwargs={}, order_outputs=True, return_exceptions=False)`: one input per zipped item.

        Lazy and streaming: inputs are read while results come, an endless iterable is fine."""
        from lorry.sdk.mapping import Mapper

        return Mapper(self, starred=False)

    @property
    def starmap(self) -> Any:
        """As `map`, each input being a sequence of arguments."""
        from lorry.sdk.mapping import Mapper

        return Mapper(self, starred=True)

    @property
    def for_each(self) -> Any:
        """As `map` for its effects: results are dropped. `ignore_exceptions=False`."""
        from lorry.sdk.mapping import ForEach

        return ForEach(self)

    @property
    def spawn_map(self) -> Any:
        """As `map`, in the background: returns a FunctionCall once all inputs are on disk."""
        from lorry.sdk.spawn_map import SpawnMap

        return SpawnMap(self)


def _function_from_number(
    tag: str,
    number: int | None,
    method: str | None,
    is_generator: bool,
    origin: tuple[str, tuple[Any, ...]] | None,
    is_resumable: bool = False,
) -> Function:
    if origin is not None:
        return Function.from_name(*origin[1])
    function = Function(tag, method=method, is_generator=is_generator)
    function._number, function.is_resumable = number, is_resumable
    return function


def _is_generator(spec: FunctionSpec, method: str | None, known: bool) -> bool:
    return known or (method in spec.generator_methods if method else spec.is_generator)


def spec_changes(changes: Mapping[str, Any], spec: FunctionSpec | None) -> Steps[dict[str, Any]]:
    """Decorator parameters as changes of a FunctionSpec's plain form."""
    from lorry.sdk.build_spec import secret_ids, volume_mounts

    plain: dict[str, Any] = {}
    given = dict(changes)
    if {"cpu", "memory", "gpu"} & given.keys():
        plain["resources"] = to_plain(opt.resources(given))
    if {"min_containers", "max_containers", "buffer_containers", "scaledown_window"} & given.keys():
        plain["scaling"] = to_plain(opt.scaling(given))
    if "retries" in given:
        if spec is not None and spec.resumable is not None:
            raise InvalidError(
                "with_options(retries=…): a run is tried again as long as it makes progress: leave it out"
            )
        plain["retries"] = to_plain(opt.retry_policy(given["retries"]))
    for name in ("timeout", "startup_timeout"):
        if given.get(name) is not None:
            plain[name] = opt.seconds(given[name], name)
    if "env" in given:
        plain["env"] = sorted([*(spec.env if spec else ()), *given["env"].items()])
    if "secrets" in given:
        plain["secret_ids"] = list((yield from secret_ids(given["secrets"])))
    if "volumes" in given:
        plain["volumes"] = to_plain((yield from volume_mounts(given["volumes"])))
    return plain


def is_generator_function(raw: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(raw) or inspect.isasyncgenfunction(raw)
