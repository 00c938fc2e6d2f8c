"""What is said of a start that took too long."""

from __future__ import annotations

from typing import Any

from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy
from lorry.server.boots import too_slow


def spec(**options: Any) -> FunctionSpec:
    return FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), **options)


def test_the_limit_is_named_with_where_it_comes_from() -> None:
    text = "importing the code and running @enter took longer than 60 s (startup_timeout, by default the function's "
    assert too_slow(spec(timeout=60.0)) == f"{text}timeout)"


def test_a_short_slice_is_no_limit_of_a_start() -> None:
    default = "startup_timeout, by default the timeout of a slice, but at least 300 s"
    sliced = spec(timeout=60.0, resumable=ResumePolicy())
    assert too_slow(sliced) == f"importing the code took longer than 300 s ({default})"
    longer = spec(timeout=3600.0, startup_timeout=20.0, resumable=ResumePolicy())
    assert too_slow(longer).startswith("importing the code took longer than 20 s")
