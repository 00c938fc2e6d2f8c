"""Any state that may be kept comes back equal: values, types, order, and what was shared."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore

from lorry.errors import InvalidError
from lorry.train.capture import Reader, Staging
from lorry.train.manifest import Entry, Manifest
from lorry.train.structure import SMALL, rebuild
from lorry.wire.codec import from_json, to_json


def through_a_checkpoint(value: Any) -> Any:
    """Captured, stored, described in JSON, read and rebuilt."""
    store = MemoryStore()
    snapshot = Staging().take({"state": value})
    entries = tuple(
        Entry(name=p.name, dtype=p.dtype, shape=p.shape, chunks=(store.put(p.data)[0],)) for p in snapshot.pieces
    )
    manifest = Manifest(
        run_id="r", step=1, token=1, parent=None, entries=entries, structure=snapshot.tree, fingerprint={},
        created_at=0.0, stall_seconds=0.0,
    )  # fmt: skip
    again = from_json(Manifest, to_json(manifest))
    assert again == manifest
    return rebuild(again.structure["state"], Reader(store, again).leaf)


keys = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(keys, inner),
        st.dictionaries(keys, inner).map(OrderedDict),
        st.dictionaries(keys, inner).map(lambda d: defaultdict(list, d)),
        st.dictionaries(keys, st.integers()).map(Counter),
        st.sets(st.one_of(st.integers(), st.text())),
        st.frozensets(st.text()),
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    """Equal, of equal types all the way down, dicts in the same order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(a == b)


@given(values)
def test_plain_values_come_back_with_their_types_and_order(value: Any) -> None:
    assert same(through_a_checkpoint(value), value)


@given(st.sampled_from(["<f4", "<f8", "<f2", ">i4", "<u8", "|b1", "<c8", "<M8[ns]", "|S3", "<U2"]), st.data())
def test_arrays_come_back(dtype: str, data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=3)))
    array = numpy.arange(int(numpy.prod(shape))).astype("u1").astype(dtype).reshape(shape)
    back = through_a_checkpoint([array])[0]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()


def test_large_and_odd_leaves() -> None:
    fortran = numpy.asfortranarray(numpy.arange(200_000.0).reshape(400, 500))
    value = {
        "large": numpy.arange(3 * SMALL, dtype="u1"),
        "fortran": fortran,
        "every other": fortran[::2, ::3],
        "scalar": numpy.float32(1.5),
        "not numbers": [float("nan"), float("inf"), float("-inf"), -0.0],
        "bytes": bytes(range(256)) * 1000,
        "bytearray": bytearray(b"abc"),
        "empty": [b"", numpy.empty((0, 4)), [], {}, ()],
        1: "number",
        "1": "text",
    }
    back = through_a_checkpoint(value)
    for name in ("large", "fortran", "every other"):
        assert numpy.array_equal(back[name], value[name])
    assert type(back["scalar"]) is numpy.float32
    assert [x.hex() for x in back["not numbers"]] == [x.hex() for x in value["not numbers"]]
    assert back["bytes"] == value["bytes"]
    assert back["bytearray"] == value["bytearray"]
    assert back["empty"][1].shape == (0, 4)
    assert (back[1], back["1"]) == ("number", "text")


def test_entries_of_equal_names_stay_apart() -> None:
    one, other = (numpy.full(SMALL, n, "u1") for n in (1, 2))
    back = through_a_checkpoint({1: one, "1": other, "~": {}})
    assert (back[1][0], back["1"][0]) == (1, 2)


def test_an_array_in_two_places_is_stored_once_and_comes_back_as_one() -> None:
    shared = numpy.arange(SMALL, dtype="u1")
    value = {"a": shared, "b": [shared], "copy": shared.copy()}
    assert sum(len(piece.data) for piece in Staging().take(value).pieces) < 3 * SMALL
    back = through_a_checkpoint(value)
    assert back["a"] is back["b"][0]
    assert back["copy"] is not back["a"]


def test_the_memory_of_a_snapshot_is_used_again() -> None:
    staging = Staging()
    staging.take({"a": numpy.zeros(1 << 20, "u1")})
    memory = staging._memory
    staging.take({"a": numpy.zeros(1 << 19, "u1")})
    assert staging._memory is memory


class Child(dict):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [Path("/")]}, r"state/a/0 is a pathlib\.PosixPath"),
        ({"a": {b"k": 1}}, r"state/a has a key of type bytes"),
        (Child(), r"state is a .*Child"),
        ({"f": print}, r"state/f is a builtins\.builtin_function"),
        (numpy.array([object()]), "array of object"),
        (numpy.zeros(2, [("x", "f4")]), "array of .*x"),
    ],
)
def test_what_cannot_be_kept_is_named(value: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        Staging().take({"state": value})


def test_a_list_in_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidError, match="contains itself"):
        Staging().take({"state": loop})
