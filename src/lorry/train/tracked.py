"""What a run can track, and how each kind gives its state and takes it back."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from lorry.errors import InvalidError
from lorry.train.batches import Batches
from lorry.train.structure import Flattener


@dataclass(frozen=True, slots=True)
class Tracked:
    """One tracked object."""

    state: Callable[[], Any]
    load: Callable[[Any], object]
    plain: bool = False
    """A dict or list: its tensors go back to their devices, for nobody else puts them there."""
    place: Callable[[], Any] | None = None
    """Of data: where it is, cheap enough to be asked at each step."""


def tracked(name: str, value: Any) -> Tracked:
    """InvalidError if this is nothing that has a state."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if isinstance(value, (dict, list)):
        return Tracked(lambda: value, lambda state: merge(value, state), plain=True)
    if isinstance(value, random.Random):
        return Tracked(value.getstate, value.setstate)
    if torch is not None and isinstance(value, torch.Generator):
        return Tracked(value.get_state, value.set_state)
    if numpy is not None and isinstance(value, numpy.random.Generator):
        bits = value.bit_generator
        return Tracked(lambda: bits.state, lambda state: setattr(bits, "state", state))
    if isinstance(value, Batches):
        return Tracked(value.state_dict, value.load_state_dict, place=_place_of(value))
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return Tracked(value.state_dict, value.load_state_dict)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise InvalidError(
        f"run.track({name}=…) got a {kind}, which has no state_dict and load_state_dict. Besides objects that have "
        f'both, it takes random generators, dicts and lists: put single values into a dict, state={{"{name}": …}}'
    )


class HalfStep:
    """Whether a step has begun since the last safe point: the state may be half of it. As far as that can be seen."""

    def __init__(self) -> None:
        self._places: list[Callable[[], Any]] = []
        """Of the tracked data."""
        self._place: list[Any] = []
        """At the last safe point."""
        self._stepped = False
        self._handled: BaseException | None = None
        """Something older than the training, which may go on in an `except` block."""

    def watch(self, value: Any, part: Tracked) -> None:
        if hasattr(value, "register_step_post_hook"):  # an optimizer
            value.register_step_post_hook(self._optimizer_stepped)
        if part.place is not None:
            self._places.append(part.place)

    def begin(self) -> None:
        self._handled = sys.exception()
        self.end()

    def end(self) -> None:
        """Here is a safe point."""
        self._stepped = False
        if self._places:
            self._place = [place() for place in self._places]

    @property
    def done(self) -> bool:
        if sys.exception() not in (None, self._handled):  # run.finish() in a `finally`
            return True
        return self._stepped or self._place != [place() for place in self._places]

    def warn(self, saved_step: int) -> None:
        warnings.warn(
            "The program ends between two steps (since the last run.step() an optimizer has stepped, a batch was "
            f"taken, or an exception came), so the newest checkpoint is that of step {saved_step:,}; what follows it "
            "will be done again",
            stacklevel=5,
        )

    def _optimizer_stepped(self, *_: Any) -> None:
        self._stepped = True


def check_that_it_can_be_kept(state: dict[str, Any]) -> None:
    """At the first attempt: what cannot shows now, not in an hour."""
    flat = Flattener()
    for name, part in state.items():
        flat.tree(part, name)


def by_name(name: str, value: Any) -> Any:
    """What `run.save` keeps: bytes, an array, or what is in a file."""
    if isinstance(value, (str, os.PathLike)):
        return Path(value).read_bytes()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if type(value).__name__ != "ndarray":
        raise InvalidError(f"run.save({name!r}) takes bytes, an array or a path, not {type(value).__qualname__}")
    return value


def _place_of(data: Batches) -> Callable[[], Any]:
    where = attrgetter("_epoch", "_place")
    return lambda: where(data)


def merge(target: Any, state: Any) -> None:
    """Make a dict or list equal to `state` in place, containers and tensors inside it too, so that whoever holds one
    of them sees the restored values. What is one object in the state is one afterwards, and what is two is two."""
    _Merge().fill(target, state)


class _Merge:
    def __init__(self) -> None:
        self._filled: dict[int, Any] = {}
        """By the id of an object of the target: what it was filled with."""
        self._became: dict[int, Any] = {}
        """By the id of a tensor or array of the state, which may be in several places: what has its values now."""

    def fill(self, target: Any, state: Any) -> None:
        self._filled[id(target)] = state
        if isinstance(target, dict):
            for key in target.keys() - state.keys():
                del target[key]
            merged = {key: self._merged(target.get(key), item) for key, item in state.items()}
            target.clear()  # the order of keys is part of the state
            target.update(merged)
        else:
            old = [*target, *[None] * len(state)]
            target[:] = [self._merged(before, item) for before, item in zip(old, state, strict=False)]

    def _merged(self, before: Any, item: Any) -> Any:
        if type(before) is type(item) and isinstance(item, (dict, list)):
            if id(before) in self._filled:
                return before if _equal(self._filled[id(before)], item) else item
            self.fill(before, item)
            return before
        if id(item) not in self._became and id(before) not in self._filled and _fits(before, item):
            with _no_grad():
                before[...] = item
            self._filled[id(before)], self._became[id(item)] = item, before
        elif hasattr(item, "dtype"):
            self._became.setdefault(id(item), item)
        return self._became.get(id(item), item)


def _equal(one: Any, other: Any) -> bool:
    """Of two containers from a checkpoint. Tensors in them are equal if they are the same object."""
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # different tensors: equal in each of their numbers, which is no yes or no
        return False


def _fits(before: Any, item: Any) -> bool:
    """Whether one tensor or array can take the values of the other."""
    if not hasattr(item, "dtype") or not isinstance(before, type(item)) or not hasattr(before, "__setitem__"):
        return False
    return bool(before.shape == item.shape and before.dtype == item.dtype)


def _no_grad() -> contextlib.AbstractContextManager[None]:
    torch = sys.modules.get("torch")
    return contextlib.nullcontext() if torch is None else torch.no_grad()
