"""Protocol logic written once: a generator of steps, driven by a blocking or an asyncio connection.

def _get(self):                            # pure: no I/O in here
    reply = yield Ask("call_info", {…})
    return reply["state"]

get = twin(_get)                           # obj.get(…) blocks, await obj.get.aio(…) does not
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload

from lorry.wire.endpoint import Frame
from lorry.wire.pickling import Piece

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class Ask(NamedTuple):
    """A request to the API. The step's value is the reply, or an Answer where a RESULT frame comes instead; a failed
    reply is raised there."""

    method: str
    params: dict[str, Any]
    on_event: Callable[[Any], None] | None = None
    """Gets the EVENTs that come before the reply."""


class Send(NamedTuple):
    """A frame with a payload that is answered by a frame of the same call: CALL → RESULT, SPAWN → CHUNK_ACK."""

    kind: int
    number: int
    payload: tuple[bytes, list[memoryview]]
    flags: int = 0
    call: bytes | None = None
    """None: a new call id is made."""
    inputs: int = 1
    """How many are in the payload."""


class Answer(NamedTuple):
    """A frame and its payload, whose views live as long as something refers to them."""

    frame: Frame
    pieces: list[Piece]


Steps = Generator[Ask | Send, Any, R]


@functools.cache
def _blocking() -> Callable[..., Any]:
    """Imported at the first call, and only then: an import statement costs 2 µs of each call otherwise."""
    from lorry.sdk.channel import drive

    return drive


class BoundTwin(Generic[P, R]):
    """A method with two faces."""

    __slots__ = ("_steps",)

    def __init__(self, steps: Callable[P, Steps[R]]) -> None:
        self._steps = steps

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        value: R = _blocking()(self._steps(*args, **kwargs))
        return value

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        from lorry.sdk.async_channel import drive

        return drive(self._steps(*args, **kwargs))

    def steps(self, *args: P.args, **kwargs: P.kwargs) -> Steps[R]:
        """For use inside other steps: `value = yield from obj.method.steps(…)`."""
        return self._steps(*args, **kwargs)


class Twin(Generic[S, P, R]):
    """Descriptor: binds like a function."""

    def __init__(self, steps: Callable[Concatenate[S, P], Steps[R]]) -> None:
        self._function = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Twin[S, P, R]: ...
    @overload
    def __get__(self, instance: S, owner: type) -> BoundTwin[P, R]: ...
    def __get__(self, instance: S | None, owner: type) -> Twin[S, P, R] | BoundTwin[P, R]:
        if instance is None:
            return self
        return BoundTwin(self._function.__get__(instance, owner))


def twin(steps: Callable[Concatenate[S, P], Steps[R]]) -> Twin[S, P, R]:
    return Twin(steps)
