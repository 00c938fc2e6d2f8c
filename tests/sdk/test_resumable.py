"""`resumable=`: what it takes, what it refuses and what to do instead."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import lorry
from lorry.errors import InvalidError
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy
from lorry.sdk.function import Function, spec_changes
from lorry.sdk.resumable import resume_policy
from lorry.wire.codec import from_json, to_json


def train() -> None: ...


def test_what_it_means() -> None:
    assert resume_policy(None) is resume_policy(False) is None
    assert resume_policy(True) == ResumePolicy()
    given = lorry.Resumable(every=200, grace="1m", keep_last=3, keep_every="2h", max_attempts=7, deadline="1h30m")
    expected = ResumePolicy(every="200", grace=60, keep_last=3, keep_every=7200, max_attempts=7, deadline=5400)
    assert resume_policy(given) == expected
    assert resume_policy(lorry.Resumable(keep_every=None)) == ResumePolicy(keep_every=None)
    assert repr(lorry.Resumable()).startswith("Resumable(every='auto', grace=30.0, keep_last=2, keep_every=3600.0")


@pytest.mark.parametrize(
    ("given", "text"), [("auto", "auto"), (200, "200"), ("200", "200"), ("5m", "5m"), ("1h30m", "1h30m")]
)
def test_how_often_is_understood_as_in_a_script(given: Any, text: str) -> None:
    from lorry.train.policy import Every

    assert lorry.Resumable(every=given).policy.every == text
    assert Every.parse(text) == Every.parse(given)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"every": 0}, "every=0: give"),
        ({"every": "0"}, "every='0': give"),
        ({"every": True}, "every=True"),
        ({"every": "often"}, "every='often'"),
        ({"every": 1.5}, "number of steps"),
        ({"grace": 0}, "grace=0 must be more"),
        ({"grace": "soon"}, "grace='soon'"),
        ({"keep_last": 0}, "keep_last=0 must be a whole number of at least 1"),
        ({"keep_last": None}, "keep_last=None"),
        ({"keep_every": "never"}, "keep_every='never'"),
        ({"max_attempts": 1.5}, "max_attempts=1.5"),
        ({"deadline": -1}, "deadline=-1"),
    ],
)
def test_wrong_values_are_refused_where_they_are_written(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidError, match=words.replace("(", r"\(")):
        lorry.Resumable(**wrong)


def generator() -> Iterator[int]:
    yield 1


async def asynchronous() -> None: ...


async def asynchronous_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        (generator, {}, "is a generator.*return the result"),
        (asynchronous_generator, {}, "is a generator"),
        (train, {"is_generator": True}, "is a generator"),
        (asynchronous, {}, "write `def`"),
        (lorry.concurrent(max_inputs=2)(train), {}, "container of its own"),
        (train, {"retries": 3}, "as long as it makes progress"),
        (train, {"restrict_access": True}, "leave one of them out"),
        (train, {"restrict_modal_access": True}, "leave one of them out"),
    ],
)
def test_what_cannot_be_a_run_is_refused_with_what_to_do(target: Any, options: dict[str, Any], words: str) -> None:
    decorate = lorry.App("test").function(resumable=True, **options)
    with pytest.raises(InvalidError, match=words):
        decorate(target)
    lorry.App("test").function(resumable=False, **options)(target)


def test_a_class_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidError, match=r"plain function.*@app\.function\(resumable=…\)"):
        lorry.App("test").cls(resumable=True)


@pytest.mark.parametrize("wrong", [1, "yes", {"every": 5}, lorry.Retries(max_retries=1)])
def test_other_values_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidError, match=r"True, False or a lorry\.Resumable"):
        lorry.App("test").function(resumable=wrong)


def spec(policy: ResumePolicy | None) -> FunctionSpec:
    return FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), resumable=policy)


@pytest.mark.parametrize("policy", [None, ResumePolicy(every="5m", keep_every=None, deadline=60)])
def test_a_spec_and_a_handle_travel_with_it(policy: ResumePolicy | None) -> None:
    assert from_json(FunctionSpec, to_json(spec(policy))).resumable == policy
    handle = Function("f")
    handle._attach(5, spec(policy))
    assert handle.is_resumable is pickle.loads(pickle.dumps(handle)).is_resumable is (policy is not None)


def test_retries_are_refused_later_too() -> None:
    with pytest.raises(InvalidError, match="leave it out"):
        list(spec_changes({"retries": 2}, spec(ResumePolicy())))
