"""When a version is not forked any more."""

from __future__ import annotations

from lorry.server.refusals import FORGIVEN_AFTER, MOST_FAILURES, Refusals


def test_a_reason_that_stays_holds_at_once_and_for_its_version_only() -> None:
    refusals = Refusals()
    refusals.refuse("a", "it has threads")
    assert refusals.reason("a", 1e9) == "it has threads"
    assert not refusals.reason("b", 0.0)


def test_failures_in_a_row_refuse_and_say_so() -> None:
    refusals = Refusals()
    for at in range(MOST_FAILURES - 1):
        assert not refusals.failed("a", "killed", at, at + 0.5)
        assert not refusals.reason("a", at + 0.5)
    assert refusals.failed("a", "killed", 10.0, 10.5)
    assert refusals.reason("a", 10.5).startswith(f"killed ({MOST_FAILURES} failures in a row")


def test_failures_are_forgiven_after_a_while_and_a_verdict_is_not() -> None:
    refusals = Refusals()
    for at in range(MOST_FAILURES):
        refusals.failed("a", "killed", at, at + 0.5)
    refused = MOST_FAILURES - 0.5
    assert refusals.reason("a", refused + FORGIVEN_AFTER - 1)
    assert not refusals.reason("a", refused + FORGIVEN_AFTER)
    later = refused + FORGIVEN_AFTER
    for at in range(1, MOST_FAILURES):
        assert not refusals.failed("a", "killed", later + at, later + at + 0.5), "counted from one again"
    assert refusals.failed("a", "killed", later + MOST_FAILURES, later + MOST_FAILURES + 0.5)
    refusals.refuse("b", "it has threads")
    refusals.failed("b", "killed", 1.0, 1.5)
    assert refusals.reason("b", 1e9) == "it has threads"


def test_a_success_begins_the_count_anew() -> None:
    refusals = Refusals()
    for at in range(4 * MOST_FAILURES):
        refusals.failed("a", "killed", at, at + 0.5)
        if at % 2:
            refusals.succeeded("a")
    assert not refusals.reason("a", 1e9)


def test_attempts_that_fail_together_count_once() -> None:
    refusals = Refusals()
    for began in range(4 * MOST_FAILURES):
        assert not refusals.failed("a", "no memory", began, 100.0)
