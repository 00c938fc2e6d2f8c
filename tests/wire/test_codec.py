"""Specs as JSON: what is written is read back, by older and newer peers too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, Resources, RetryPolicy, Scaling, VolumeMount
from lorry.model.image import ImageSpec
from lorry.wire.codec import from_json, from_plain, to_json, to_plain

texts = st.text(max_size=8)
seconds = st.floats(0.001, 1e6)
counts = st.integers(0, 1000)
resources = st.builds(
    Resources, cpu=seconds, cpu_limit=st.none() | seconds, memory=counts, memory_limit=st.none() | counts
)
specs = st.builds(
    FunctionSpec,
    tag=texts,
    kind=st.sampled_from(FunctionKind),
    code=st.builds(CodeRef, module=texts, qualname=texts, entry=st.none() | texts, serialized=st.none() | texts),
    image=st.just(ImageSpec()),
    source=texts,
    resources=resources,
    scaling=st.builds(Scaling, min_containers=counts, max_containers=st.none() | counts, scaledown_window=seconds),
    retries=st.builds(RetryPolicy, max_retries=counts, initial_delay=seconds),
    timeout=seconds,
    startup_timeout=st.none() | seconds,
    volumes=st.lists(st.builds(VolumeMount, path=texts, volume_id=texts, read_only=st.booleans()), max_size=2).map(
        tuple
    ),
    env=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    methods=st.lists(texts, max_size=3).map(tuple),
    parameters=st.none() | texts,
)


@settings(max_examples=60, deadline=None)
@given(specs)
def test_a_function_spec_survives_the_wire(spec: FunctionSpec) -> None:
    assert from_json(FunctionSpec, to_json(spec)) == spec
    assert from_plain(FunctionSpec, json.loads(json.dumps(to_plain(spec)))) == spec


@settings(max_examples=20, deadline=None)
@given(specs, st.dictionaries(st.text(min_size=1, max_size=5).map(lambda name: f"new_{name}"), counts, max_size=3))
def test_what_a_newer_peer_sends_more_is_ignored(spec: FunctionSpec, more: dict[str, int]) -> None:
    plain = {**to_plain(spec), **more}
    plain["resources"] = {**plain["resources"], **more}
    assert from_plain(FunctionSpec, plain) == spec


def test_what_an_older_peer_leaves_out_has_its_default() -> None:
    plain = {"tag": "f", "kind": "function", "code": {"module": "m", "qualname": "f"}}
    spec = from_plain(FunctionSpec, plain)
    assert (spec.timeout, spec.resources.memory, spec.volumes) == (300.0, 128, ())


def test_equal_values_give_equal_text() -> None:
    assert to_json({"b": 1, "a": (1, 2)}) == to_json({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'


@pytest.mark.parametrize("plain", [{}, {"tag": "f"}, {"tag": "f", "kind": "no such", "code": {}}])
def test_what_does_not_fit_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_plain(FunctionSpec, plain)


@dataclass(frozen=True)
class Holder:
    data: bytes
    size: float = 0.0


@given(st.binary(max_size=40))
def test_bytes_travel_as_text(data: bytes) -> None:
    assert from_json(Holder, to_json(Holder(data))) == Holder(data)


def test_whole_numbers_become_the_floats_that_they_stand_for() -> None:
    assert isinstance(from_plain(Holder, {"data": "", "size": 3}).size, float)
