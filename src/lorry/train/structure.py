"""State ↔ a JSON tree and a list of leaves: tensors, arrays and bytes. Never pickle, so a checkpoint runs no code.

In the tree, numbers, texts, None and lists are themselves. Everything else is an object with one key that begins
with "$": `{"$dict": [[key, value], …]}` keeps the order and the types of keys, `{"$entry": name}` stands for a leaf.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorry.errors import InvalidError
from lorry.train.manifest import BLOB

SMALL = 64 << 10
"""Bytes. Leaves below it share one entry: a file each would be thousands of files."""
PACKED = "packed"
"""That entry's name."""
ALIGNMENT = 64
"""Of each leaf in memory: any dtype fits, and vector instructions are at ease."""
_FACTORIES: dict[str, type] = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, set)}
_PAIRED: dict[str, Callable[[list[tuple[Any, Any]]], Any]] = {
    "$dict": dict,
    "$ordered": OrderedDict,
    "$counter": lambda pairs: Counter(dict(pairs)),
}
_LISTED: dict[str, Callable[[list[Any]], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where the bytes of one tensor, array or bytes object are, and where they belong in the checkpoint."""

    entry: str
    at: int
    """Offset in the entry; more than 0 only in the packed one."""
    dtype: str
    """torch's name without "torch.", NumPy's with its byte order ("<f4"), or "bytes"."""
    shape: tuple[int, ...]
    size: int
    """Bytes."""
    source: Any


class Flattener:
    """Walks a state and gathers its leaves. Those that share their memory are gathered once."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self.packed = 0
        """Bytes in the packed entry."""
        self._names: set[str] = {PACKED}
        self._known: dict[Any, dict[str, Any]] = {}

    def tree(self, value: Any, path: str) -> Any:
        """The tree of a value. InvalidError names the path to what cannot be kept."""
        try:
            return self._tree(value, path)
        except RecursionError as e:
            raise InvalidError(f"{path} contains itself, or is nested too deeply for a checkpoint") from e

    def _tree(self, value: Any, path: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is list:
            return self._items(value, path)
        if kind is tuple or _is(value, "torch", "Size"):
            return {"$tuple": self._items(value, path)}
        if kind in (set, frozenset):
            return {f"${kind.__name__}": self._items(sorted(value, key=repr), path)}
        if isinstance(value, dict):
            return self._dict(value, path)
        return self._leaf(value, path)

    def _items(self, values: Any, path: str) -> list[Any]:
        return [self._tree(item, f"{path}/{i}") for i, item in enumerate(values)]

    def _dict(self, value: dict[Any, Any], path: str) -> Any:
        pairs = [[self._key(key, path), self._tree(item, f"{path}/{key}")] for key, item in value.items()]
        kind = type(value)
        if kind is dict:
            return {"$dict": pairs}
        if kind is Counter:
            return {"$counter": pairs}
        if isinstance(value, defaultdict) and kind is defaultdict:
            name = getattr(value.default_factory, "__name__", "")
            known = _FACTORIES.get(name) is value.default_factory
            return {"$default": pairs, "of": name if known else None}
        if kind is OrderedDict:
            metadata = getattr(value, "_metadata", None)  # torch: the versions of a model's layers
            noted = {} if metadata is None else {"metadata": self._tree(metadata, f"{path}/_metadata")}
            return {"$ordered": pairs, **noted}
        raise self._refused(value, path)

    def _key(self, key: Any, path: str) -> Any:
        if key is None or type(key) in (str, int, float, bool, tuple):
            return self._tree(key, f"{path} (the key {key!r})")
        raise InvalidError(f"{path} has a key of type {type(key).__qualname__} ({key!r:.80}): use text or numbers")

    def _leaf(self, value: Any, path: str) -> Any:
        if type(value) in (bytes, bytearray):
            reference = self._add(value, path, BLOB, (len(value),), len(value))
            return reference if type(value) is bytes else {"$bytearray": reference}
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and isinstance(value, torch.Tensor):
            return self._tensor(torch, value, path)
        if numpy is not None and isinstance(value, numpy.generic):
            return {"$scalar": self._leaf(numpy.asarray(value), path)}
        if numpy is not None and type(value) is numpy.ndarray:
            if value.dtype.hasobject or value.dtype.names:
                raise InvalidError(f"{path} is an array of {value.dtype}: only plain numbers can be kept")
            key = ("numpy", value.__array_interface__["data"][0], value.shape, value.strides, value.dtype.str)
            return self._once(key, value, path, value.dtype.str, value.shape, value.nbytes)
        raise self._refused(value, path)

    def _tensor(self, torch: Any, value: Any, path: str) -> Any:
        why = _unkept(torch, value)
        if why is not None:
            raise InvalidError(f"{path} is {why}, which a checkpoint cannot keep")
        value = value.detach()
        storage = value.untyped_storage().data_ptr()
        place = (storage, value.storage_offset(), value.is_conj(), value.is_neg())
        key = (str(value.device), place, value.shape, value.stride(), value.dtype)
        size = value.numel() * value.element_size()
        reference = self._once(key, value, path, str(value.dtype).removeprefix("torch."), tuple(value.shape), size)
        if value.device.type != "cpu":
            reference["on"] = str(value.device)
        return reference

    def _once(self, key: Any, value: Any, path: str, dtype: str, shape: tuple[int, ...], size: int) -> dict[str, Any]:
        if not size:
            return self._add(value, path, dtype, shape, size)
        if key not in self._known:
            self._known[key] = self._add(value, path, dtype, shape, size)
        return self._known[key]

    def _add(self, value: Any, path: str, dtype: str, shape: tuple[int, ...], size: int) -> dict[str, Any]:
        if size < SMALL:
            at = self.packed
            self.packed = aligned(at + size)
            self.leaves.append(Leaf(PACKED, at, dtype, shape, size, value))
            return {"$entry": PACKED, "at": at, "dtype": dtype, "shape": list(shape)}
        name, again = path, 2
        while name in self._names:  # 1 and "1" are different keys
            name, again = f"{path}~{again}", again + 1
        self._names.add(name)
        self.leaves.append(Leaf(name, 0, dtype, shape, size, value))
        return {"$entry": name}

    def _refused(self, value: Any, path: str) -> InvalidError:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        return InvalidError(
            f"{path} is a {kind} ({value!r:.80}), which a checkpoint cannot keep. It keeps numbers, texts, bytes, "
            "None, lists, tuples, sets, dicts, torch tensors and NumPy arrays"
        )


def rebuild(tree: Any, leaf: Callable[[dict[str, Any]], Any]) -> Any:
    """The value that a tree stands for. `leaf` gives the tensor, array or bytes of a reference."""
    if isinstance(tree, list):
        return [rebuild(item, leaf) for item in tree]
    if not isinstance(tree, dict):
        return tree
    mark = next(key for key in tree if key.startswith("$"))
    inside = tree[mark]
    if mark == "$entry":
        return leaf(tree)
    if mark == "$float":
        return float(inside)
    if mark == "$scalar":
        return leaf(inside)[()]
    if mark == "$bytearray":
        return bytearray(leaf(inside))
    if mark in _LISTED:
        return _LISTED[mark]([rebuild(item, leaf) for item in inside])
    pairs = [(rebuild(key, leaf), rebuild(item, leaf)) for key, item in inside]
    if mark == "$default":
        return defaultdict(_FACTORIES.get(tree["of"]), pairs)
    value = _PAIRED[mark](pairs)
    if "metadata" in tree:
        value._metadata = rebuild(tree["metadata"], leaf)
    return value


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _is(value: Any, module: str, name: str) -> bool:
    return module in sys.modules and type(value) is getattr(sys.modules[module], name, None)


def _unkept(torch: Any, value: Any) -> str | None:
    """What is special about a tensor that cannot be kept."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(value).__module__}.{type(value).__qualname__} (a kind of tensor of its own)"
    if value.layout is not torch.strided:
        return f"a sparse tensor ({value.layout})"
    if value.is_quantized:
        return "a quantised tensor"
    if value.device.type == "meta":
        return "a tensor without data (device meta)"
    return None
