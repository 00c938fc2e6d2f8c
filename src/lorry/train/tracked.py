"""What a run can track, and how each kind gives its state and takes it back."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from lorry.errors import InvalidError
from lorry.train.batches import Batches


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


def _place_of(data: Batches) -> Callable[[], Any]:
    where = attrgetter("_epoch", "_place")
    return lambda: where(data)


def merge(target: Any, state: Any) -> None:
    """Make a dict or list equal to `state` in place, containers and tensors inside it too, so that whoever holds one
    of them sees the restored values."""
    if isinstance(target, dict):
        for key in target.keys() - state.keys():
            del target[key]
        merged = {key: _merged(target.get(key), item) for key, item in state.items()}
        target.clear()  # the order of keys is part of the state
        target.update(merged)
    else:
        old = [*target, *[None] * len(state)]
        target[:] = [_merged(before, item) for before, item in zip(old, state, strict=False)]


def _merged(before: Any, item: Any) -> Any:
    if type(before) is type(item) and isinstance(item, (dict, list)):
        merge(before, item)
        return before
    if _fits(before, item):
        with _no_grad():
            before[...] = item
        return before
    return item


def _fits(before: Any, item: Any) -> bool:
    """Whether one tensor or array can take the values of the other."""
    if not hasattr(item, "dtype") or not isinstance(before, type(item)) or not hasattr(before, "__setitem__"):
        return False
    return bool(before.shape == item.shape and before.dtype == item.dtype)


def _no_grad() -> contextlib.AbstractContextManager[None]:
    torch = sys.modules.get("torch")
    return contextlib.nullcontext() if torch is None else torch.no_grad()
