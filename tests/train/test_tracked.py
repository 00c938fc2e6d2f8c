"""What is tracked comes back as the objects it was, and a step that was begun is told from one that is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import lorry
from lorry.train.tracked import merge

# Merging


def test_what_began_as_one_object_and_became_two_comes_back_as_two() -> None:
    array, rows = numpy.zeros(2), [0]
    state = {"best": array, "average": array, "seen": rows, "left": rows}
    merge(state, {"best": numpy.ones(2), "average": numpy.full(2, 2.0), "seen": [1], "left": [2]})
    assert state["best"] is array
    assert array.tolist() == [1, 1]
    assert state["average"].tolist() == [2, 2]  # type: ignore[attr-defined]
    assert (state["seen"], state["left"]) == ([1], [2])


def test_what_became_one_object_comes_back_as_one() -> None:
    one, state = numpy.ones(2), {"weights": numpy.zeros(2), "best": numpy.zeros(2), "more": [numpy.zeros(2)]}
    weights = state["weights"]
    merge(state, {"weights": one, "best": one, "more": [one]})
    assert state["weights"] is state["best"] is state["more"][0] is weights  # type: ignore[index]
    assert weights.tolist() == [1, 1]


def test_containers_that_are_one_and_equal_stay_one() -> None:
    rows: list[Any] = [numpy.zeros(2)]
    state, array = [rows, rows], numpy.ones(2)
    merge(state, [[array, float("inf")], [array, float("inf")]])
    assert state[0] is state[1] is rows
    assert rows[0].tolist() == [1, 1]


# The end


def in_a_finally(step: Callable[[bool], None], run: lorry.Run) -> None:
    try:
        step(True)
        step(False)
    finally:
        run.finish()


def in_an_except(step: Callable[[bool], None], run: lorry.Run) -> None:
    try:
        step(True)
        step(False)
    except ZeroDivisionError:
        run.finish()


@pytest.mark.parametrize("train", [in_a_finally, in_an_except])
def test_finish_after_an_exception_saves_no_half_of_a_step(tmp_path: Path, train: Callable[..., None]) -> None:
    state = {"seen": 0, "done": 0}
    run = lorry.run(tmp_path, every=1000)
    run.track(state=state)
    run.restore()

    def step(well: bool) -> None:
        state["seen"] += 1
        state["done"] += 1 // well
        run.step()

    with pytest.warns(UserWarning, match="an exception came.*newest checkpoint is that of step 0;"):  # noqa: PT031
        try:
            train(step, run)
        except ZeroDivisionError:
            pass
    assert not (tmp_path / "HEAD").exists()


def test_an_exception_that_is_older_than_the_training_does_not_matter(tmp_path: Path) -> None:
    try:
        raise ImportError
    except ImportError:
        run = lorry.run(tmp_path, every=1000)
        run.restore()
        run.step()
        run.finish()
    assert (tmp_path / "HEAD").exists()
