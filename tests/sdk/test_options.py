"""Parameters of decorators: units, ranges, and messages that say what would work."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import InvalidError
from lorry.model.function import RetryPolicy
from lorry.sdk import options as opt
from lorry.sdk.retries import Retries


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (300, 300),
        (0.5, 0.5),
        ("90s", 90),
        ("15m", 900),
        ("24h", 86_400),
        ("7d", 604_800),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5m", 90),
    ],
)
def test_times_have_units(value: Any, wanted: float) -> None:
    assert opt.seconds(value, "timeout") == wanted


@pytest.mark.parametrize(
    "value", ["", "5", "5x", "m5", "-5s", "5 minutes", "1h-", 0, -1, True, None, math.nan, math.inf, "0s", [5]]
)
def test_other_times_are_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidError, match="timeout"):
        opt.seconds(value, "timeout")


@given(st.text(max_size=12))
def test_any_text_is_a_time_or_an_invalid_error(text: str) -> None:
    for convert in (opt.seconds, opt.mebibytes):
        try:
            assert 0 < convert(text, "x") < math.inf
        except InvalidError as refused:
            assert str(refused).startswith("x")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(8192, 8192), ("8GB", 8192), ("8 GiB", 8192), ("512MiB", 512), ("1tb", 1 << 20), ("1.5 gb", 1536), ("300", 300)],
)
def test_sizes_have_units(value: Any, wanted: int) -> None:
    assert opt.mebibytes(value, "memory") == wanted


@pytest.mark.parametrize("value", ["", "8XB", "GB", 0, -5, 0.5, True, None, math.nan, math.inf, "0GB", [1]])
def test_other_sizes_are_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidError, match="memory"):
        opt.mebibytes(value, "memory")


def test_a_pair_is_a_request_and_a_limit() -> None:
    resources = opt.resources({"cpu": (1, 2.5), "memory": ("1GB", "2GB"), "gpu": "L4"})
    assert (resources.cpu, resources.cpu_limit, resources.memory, resources.memory_limit) == (1.0, 2.5, 1024, 2048)
    assert resources.gpus[0].model == "L4"
    assert opt.resources({}) == opt.resources({"cpu": None, "memory": None})
    assert opt.resources({"memory": 500}).memory_limit is None


@pytest.mark.parametrize(
    "given_",
    [
        {"cpu": (2, 1)},
        {"cpu": (1, 2, 3)},
        {"cpu": 0},
        {"cpu": "2"},
        {"cpu": math.nan},
        {"memory": (2048, 1024)},
        {"ephemeral_disk": -1},
    ],
)
def test_impossible_resources_are_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=next(iter(given_))):
        opt.resources(given_)


def test_memory_backoff_needs_a_limit_and_a_retry_to_multiply() -> None:
    grows = Retries(max_retries=2, memory_backoff=2.0)
    assert (grows.policy.memory_backoff, Retries(max_retries=1).policy.memory_backoff) == (2.0, 1.0)
    opt.check_memory_backoff({"memory": (512, 1024), "retries": grows})
    with pytest.raises(InvalidError, match=r"memory=\(512, 1024\) reserves 512"):
        opt.check_memory_backoff({"memory": 512, "retries": grows})
    with pytest.raises(InvalidError, match="no effect with max_retries=0"):
        Retries(max_retries=0, memory_backoff=2.0)
    for wrong in (0.5, math.inf, math.nan, "2", True):
        with pytest.raises(InvalidError, match="memory_backoff"):
            Retries(max_retries=1, memory_backoff=wrong)


def test_scaling_is_checked_as_a_whole() -> None:
    scaling = opt.scaling({"min_containers": 1, "max_containers": 3, "scaledown_window": "2m"})
    assert (scaling.min_containers, scaling.max_containers, scaling.scaledown_window) == (1, 3, 120.0)
    with pytest.raises(InvalidError, match="more than max_containers"):
        opt.scaling({"min_containers": 3, "max_containers": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_containers", -1), ("max_containers", 0), ("buffer_containers", 1.5), ("min_containers", True)],
)
def test_counts_are_whole_and_in_range(name: str, value: Any) -> None:
    with pytest.raises(InvalidError, match=name):
        opt.scaling({name: value})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("timout", "did you mean timeout="),
        ("keep_warm", "min_containers"),
        ("secret", r"secrets=\[…\]"),
        ("xyzzy", "no parameter xyzzy=$"),
    ],
)
def test_unknown_names_are_answered_with_the_right_one(name: str, hint: str) -> None:
    with pytest.raises(InvalidError, match=hint):
        opt.check_names([name], "@app.function")


def test_a_class_takes_no_schedule() -> None:
    opt.check_names(["gpu", "schedule"], "@app.function")
    with pytest.raises(InvalidError, match="@app.cls takes no schedule="):
        opt.check_names(["schedule"], "@app.cls", opt.NOT_CLS)


def test_parameters_without_effect_warn_once_each() -> None:
    with pytest.warns(UserWarning, match="proxy= is accepted, but") as caught:
        opt.warn_later({"proxy": "p", "budget": None}, "@app.function")
    assert len(caught) == 1


def test_retries() -> None:
    assert opt.retry_policy(None) == RetryPolicy()
    assert opt.retry_policy(3) == RetryPolicy(max_retries=3)
    assert opt.retry_policy(Retries(max_retries=2, initial_delay=0)).backoff_coefficient == 2.0
    assert "max_retries=2" in repr(Retries(max_retries=2))


@pytest.mark.parametrize("changes", [{"backoff_coefficient": "2"}, {"initial_delay": None}, {"max_delay": "1m"}])
def test_delays_that_are_no_numbers_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=f"{next(iter(changes))}=.* must be"):
        Retries(max_retries=1, **changes)


@pytest.mark.parametrize("value", [-1, True, "3", 1.5])
def test_impossible_retries_are_refused(value: Any) -> None:
    with pytest.raises(InvalidError):
        opt.retry_policy(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"backoff_coefficient": 0.5},
        {"initial_delay": -1},
        {"initial_delay": 5, "max_delay": 1},
        {"max_delay": math.nan},
    ],
)
def test_impossible_delays_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match=list(changes)[-1]):
        Retries(max_retries=1, **changes)


def test_lists_are_lists() -> None:
    assert opt.sequence(None, "secrets") == ()
    for wrong in ("text", b"x", {"a": 1}):
        with pytest.raises(InvalidError, match="secrets must be a list"):
            opt.sequence(wrong, "secrets")
