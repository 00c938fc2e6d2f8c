"""What a function's declaration means where it says nothing."""

from __future__ import annotations

import pytest

from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy


@pytest.mark.parametrize(
    ("timeout", "startup", "resumable", "effective"),
    [
        (60, None, False, 60),
        (60, 5, True, 5),
        (60, None, True, 300),
        (900, None, True, 900),
    ],
)
def test_a_short_slice_leaves_the_start_its_time(
    timeout: float, startup: float | None, resumable: bool, effective: float
) -> None:
    spec = FunctionSpec(
        tag="f",
        kind=FunctionKind.FUNCTION,
        code=CodeRef(module="m", qualname="f"),
        timeout=timeout,
        startup_timeout=startup,
        resumable=ResumePolicy() if resumable else None,
    )
    assert spec.effective_startup_timeout == effective
