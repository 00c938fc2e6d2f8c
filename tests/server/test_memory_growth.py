"""What a function's next container gets after one passed its memory limit, and what the last error says."""

from __future__ import annotations

from typing import Any

from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, Resources, RetryPolicy
from lorry.server.memory_growth import MemoryGrowth

TARGET = 7


def spec(**policy: Any) -> FunctionSpec:
    return FunctionSpec(
        tag="f",
        kind=FunctionKind.FUNCTION,
        code=CodeRef(module="m", qualname="f"),
        resources=Resources(memory=50, memory_limit=100),
        retries=RetryPolicy(**policy),
    )


def test_each_death_at_the_present_limit_raises_it_until_the_retries_are_used_up() -> None:
    growth, declared = MemoryGrowth(10_000), spec(max_retries=2, memory_backoff=2.0)
    assert growth.spec(TARGET, declared) is declared
    sentence = growth.passed(TARGET, declared, 100)
    assert sentence == (
        "A container of f passed its memory limit of 100 MiB: the next ones get 200 MiB (memory_backoff=2)."
    )
    assert growth.spec(TARGET, declared).resources == Resources(memory=100, memory_limit=200)
    assert growth.passed(TARGET, declared, 200)
    assert growth.passed(TARGET, declared, 400) is None
    assert growth.story(declared, 400) == ". memory_backoff=2 tried 100, 200, 400 MiB and ended there: max_retries=2"


def test_the_machine_s_memory_is_the_last_step() -> None:
    growth, declared = MemoryGrowth(150), spec(max_retries=5, memory_backoff=2.0)
    growth.passed(TARGET, declared, 100)
    assert growth.spec(TARGET, declared).resources.memory_limit == 150
    assert growth.passed(TARGET, declared, 150) is None
    assert "tried 100, 150 MiB and ended there: this machine has 150 MiB" in growth.story(declared, 150)


def test_a_late_death_of_a_smaller_container_raises_nothing() -> None:
    growth, declared = MemoryGrowth(10_000), spec(max_retries=5, memory_backoff=2.0)
    growth.passed(TARGET, declared, 100)
    growth.passed(TARGET, declared, 200)
    assert growth.is_small(TARGET, 100)
    growth.passed(TARGET, declared, 100)
    assert growth.spec(TARGET, declared).resources.memory_limit == 400
    assert not growth.is_small(TARGET, 400)


def test_without_memory_backoff_nothing_grows_and_nothing_is_told() -> None:
    growth, declared = MemoryGrowth(10_000), spec(max_retries=5)
    assert growth.passed(TARGET, declared, 100) is None
    assert growth.spec(TARGET, declared) is declared
    assert growth.story(declared, 100) == ""


def test_a_container_of_an_earlier_life_teaches_what_that_life_had_learnt() -> None:
    growth, declared = MemoryGrowth(10_000), spec(max_retries=5, memory_backoff=2.0)
    growth.adopted(TARGET, declared, 100)
    assert growth.spec(TARGET, declared) is declared
    growth.adopted(TARGET, declared, 400)
    growth.adopted(TARGET, declared, 200)
    assert growth.spec(TARGET, declared).resources.memory_limit == 400
    assert growth.restored(declared, 200).resources == Resources(memory=100, memory_limit=200)
    growth.forget(TARGET)
    assert growth.spec(TARGET, declared) is declared
