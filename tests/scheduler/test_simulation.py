"""Ten thousand seeds of a world in which everything dies, pauses, repeats itself and comes too late."""

from __future__ import annotations

import os
import time

import pytest

from lorry.model.function import RetryPolicy
from lorry.model.records import Status
from lorry.scheduler.dispatch import Dispatcher, Send, Work
from lorry.testing import simulator
from lorry.testing.simulated_audit import audit, audit_empty

SEEDS = 10_000


def test_a_seed_tells_the_same_story_every_time() -> None:
    assert simulator.story(simulator.run_seed(7)) == simulator.story(simulator.run_seed(7))


def test_ten_thousand_seeds_keep_the_promises(capsys: pytest.CaptureFixture[str]) -> None:
    seconds, failures, totals = simulator.run_many(0, SEEDS)
    with capsys.disabled():
        print(f"\n{SEEDS} seeds in {seconds:.1f} s on {os.cpu_count()} cores: {SEEDS / seconds:.0f}/s; {totals}")
    assert not failures, failures[0]
    # The world is worth living through: everything that can happen does.
    assert totals["crashes"] > SEEDS / 4
    assert all(totals.get(status.name) for status in set(Status) - {Status.YIELD, Status.CONTINUE}), totals
    assert totals["continued"] > SEEDS


@pytest.mark.prove
def test_ten_thousand_containers_at_once() -> None:
    """Half of them die, all inputs end, and no event costs more than the work that it moves."""
    count = 10_000
    d = Dispatcher(1)
    d.open(1, RetryPolicy(), 300.0)
    began = time.perf_counter()
    sends: dict[str, Send] = {}
    for number in range(count):
        d.ready(f"ct-{number}", 1, 1, 0.0)
    for number in range(2 * count):
        for effect in d.submit(Work(call=number.to_bytes(16, "big"), target=1), 0.0) or ():
            assert isinstance(effect, Send)
            sends[effect.container] = effect
    assert (len(sends), d.queues[1].waiting) == (count, count)
    for number in range(0, count, 2):
        del sends[f"ct-{number}"]
        d.lost(f"ct-{number}", "gone", 1.0)
    assert d.tick(2.0) == []
    audit(d)
    finished = 0
    while sends:
        _, send = sends.popitem()
        verdict = d.result(send.container, send.lease, None, Status.OK, True, 3.0)
        finished += len(verdict.deliver)
        for effect in verdict.effects:
            assert isinstance(effect, Send)
            sends[effect.container] = effect
    assert finished == 2 * count
    audit_empty(d)
    assert time.perf_counter() - began < 20.0  # 0.4 s here; quadratic anywhere would be minutes
