"""Stages add up, survive JSON, and give the advice that fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.model.coldstart import STAGES, Clockwork, ColdStart, advice, from_json


@given(st.lists(st.tuples(st.sampled_from(sorted(STAGES)), st.floats(0, 100)), max_size=20), st.floats(0, 50))
def test_stages_that_end_one_after_the_other_cover_the_whole_time(
    ends: list[tuple[str, float]], elsewhere: float
) -> None:
    clock, now = Clockwork(1000.0), 1000.0
    for stage, lasted in ends:
        now += lasted
        clock.end(stage, now)
    clock.add("import", elsewhere)
    assert sum(clock.seconds.values()) == pytest.approx(now - 1000.0 + elsewhere)
    assert clock.mark == pytest.approx(now + elsewhere)


def start(cold: str = "", imports: tuple[tuple[str, float], ...] = (), **seconds: float) -> ColdStart:
    stages = {name.replace("_", " "): value for name, value in seconds.items()}
    return ColdStart(function="f", started_at=5.0, seconds=stages, cold=cold, imports=imports)


def test_a_start_survives_json() -> None:
    one = start("no fork", (("torch", 1.5),), queue=0.1, first_input=0.2)
    assert from_json("f", 5.0, one.to_json()) == one
    assert one.total == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ([start(sandbox=0.02)], []),
        ([], []),
        ([start("its import started 2 threads")], ["1 of 1", "started 2 threads"]),
        ([start("the newest reason"), start("an older one"), start()], ["2 of 3", "the newest reason"]),
        ([start(imports=(("lorry", 0.1),), **{"import": 0.8})], ["lorry 0.1 s, the module's own code 0.7 s"]),
        ([start("it has GPUs", enter=2.0)], ["where there is one"]),
        (
            [start(imports=(("torch", 1.4), ("pandas", 0.4)), **{"import": 1.9}), start()],
            ["torch 1.4 s, pandas 0.4 s", "once"],
        ),
        ([start(enter=2.0)], ["snap=True", "2 s"]),
        ([start(first_input=0.8)], ["first input", "first use"]),
        ([start(image=3.0)], ["image"]),
        ([start(queue=0.5)], ["`lorry why APP`"]),
        ([start(sandbox=0.6, first_input=0.6)], ["1.2 s in all", "buffer_containers"]),
    ],
)
def test_advice_names_what_costs_time(starts: list[ColdStart], words: list[str]) -> None:
    text = " ".join(advice(starts))
    assert bool(text) == bool(words)
    for word in words:
        assert word in text
