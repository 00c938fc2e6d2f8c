"""The machine itself: moves, refusals, and the story that a refusal tells."""

from __future__ import annotations

from enum import StrEnum

import pytest

from lorry.errors import InternalError
from lorry.lifecycle.machine import STORY_LENGTH, Machine


class Door(StrEnum):
    OPEN = "open"
    SHUT = "shut"
    BRICKED_UP = "bricked_up"


class Hand(StrEnum):
    PUSH = "push"
    PULL = "pull"
    WALL = "wall"


TABLE = {
    (Door.SHUT, Hand.PULL): Door.OPEN,
    (Door.OPEN, Hand.PUSH): Door.SHUT,
    (Door.SHUT, Hand.WALL): Door.BRICKED_UP,
}


def a_door() -> Machine[Door, Hand]:
    return Machine("door d-1", TABLE, Door.SHUT)


def test_a_legal_move_returns_and_keeps_the_new_state() -> None:
    door = a_door()
    assert door.fire(Hand.PULL, 1.0) is Door.OPEN
    assert door.state is Door.OPEN
    assert [(move.at, move.event, move.before, move.after) for move in door.story] == [
        (1.0, Hand.PULL, Door.SHUT, Door.OPEN)
    ]


def test_an_illegal_move_raises_with_the_story_and_what_would_be_legal() -> None:
    door = a_door()
    door.fire(Hand.PULL, 1.0)
    door.fire(Hand.PUSH, 2.5)
    with pytest.raises(InternalError) as caught:
        door.fire(Hand.PUSH, 3.0)
    text = str(caught.value)
    assert "door d-1: 'push' at 3.000 is not legal in state 'shut' (legal: pull, wall)" in text
    assert "1.000 pull: shut -> open; 2.500 push: open -> shut" in text


def test_an_illegal_move_changes_nothing() -> None:
    door = a_door()
    with pytest.raises(InternalError, match="no move so far"):
        door.fire(Hand.PUSH, 1.0)
    assert door.state is Door.SHUT
    assert door.story == ()


def test_a_final_state_says_that_nothing_is_legal() -> None:
    door = a_door()
    door.fire(Hand.WALL, 1.0)
    with pytest.raises(InternalError, match="legal: nothing"):
        door.fire(Hand.PULL, 2.0)


def test_the_story_is_bounded_and_counts_what_it_forgot() -> None:
    door = a_door()
    for time in range(0, STORY_LENGTH + 10, 2):
        door.fire(Hand.PULL, float(time))
        door.fire(Hand.PUSH, float(time + 1))
    assert len(door.story) == STORY_LENGTH
    assert door.story[-1].at == STORY_LENGTH + 9
    with pytest.raises(InternalError, match=r"\(10 earlier moves\)"):
        door.fire(Hand.PUSH, 99.0)


def test_allows_asks_without_moving() -> None:
    door = a_door()
    assert door.allows(Hand.PULL)
    assert not door.allows(Hand.PUSH)
    assert door.state is Door.SHUT
