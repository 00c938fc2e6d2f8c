"""Every state and every event of the two life cycles, written out a second time by hand.

Columns are events, rows are states; a cell is the next state, `.` is illegal.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import pytest

from lorry.errors import InternalError
from lorry.lifecycle import container, deployment
from lorry.lifecycle.container import ContainerEvent, ContainerState, container_machine
from lorry.lifecycle.deployment import AppEvent, app_machine
from lorry.lifecycle.machine import Machine
from lorry.model.records import AppState

Table = Mapping[tuple[StrEnum, StrEnum], StrEnum]

CONTAINER_LAUNCH = """
             spawned  start_failed booted   boot_failed exited
starting     booting  dead         .        .           .
booting      .        .            ready    stopping    dead
ready        .        .            .        .           dead
draining     .        .            .        .           dead
stopping     stopping dead         stopping stopping    dead
dead         .        .            dead     dead        .
lost_contact .        .            .        .           dead
"""
CONTAINER_END = """
             drain    stop     contact_lost adopted_booting adopted_ready adopted_draining given_up
starting     stopping stopping lost_contact .               .             .                .
booting      stopping stopping lost_contact .               .             .                .
ready        draining stopping lost_contact .               .             .                .
draining     draining stopping lost_contact .               .             .                .
stopping     stopping stopping stopping     .               .             .                .
dead         .        .        dead         .               .             .                .
lost_contact .        stopping .            booting         ready         draining         stopping
"""
APP = """
          detach   deploy   client_left calls_done replaced stop
ephemeral detached deployed stopped     .          .        stopped
detached  detached .        detached    stopped    .        stopped
deployed  .        deployed deployed    .          detached stopped
stopped   .        .        stopped     .          .        stopped
"""


def cells(text: str) -> dict[tuple[str, str], str]:
    header, *rows = (line.split() for line in text.strip().splitlines())
    return {(row[0], event): after for row in rows for event, after in zip(header, row[1:], strict=True)}


class Life:
    """One life cycle: what the code says, what this file says, and how it begins and ends."""

    def __init__(
        self,
        states: type[StrEnum],
        events: type[StrEnum],
        moves: Mapping[Any, Any],
        machine: Callable[..., Machine[Any, Any]],
        expected: dict[tuple[str, str], str],
        final: set[str],
    ) -> None:
        self.states, self.events, self.machine = states, events, machine
        self.moves: Table = moves
        self.expected, self.final = expected, final


LIVES = {
    "container": Life(
        ContainerState,
        ContainerEvent,
        container.MOVES,
        container_machine,
        cells(CONTAINER_LAUNCH) | cells(CONTAINER_END),
        {"dead"},
    ),
    "app": Life(AppState, AppEvent, deployment.MOVES, app_machine, cells(APP), {"stopped"}),
}

every_life = pytest.mark.parametrize("life", LIVES.values(), ids=LIVES.keys())


@every_life
def test_the_written_table_has_every_state_and_event(life: Life) -> None:
    assert set(life.expected) == {(state.value, event.value) for state in life.states for event in life.events}


@every_life
def test_every_cell_is_as_written(life: Life) -> None:
    for state in life.states:
        for event in life.events:
            machine = life.machine("x-1", state)
            after = life.expected[state.value, event.value]
            assert machine.allows(event) == (after != "."), (state, event)
            if after == ".":
                with pytest.raises(InternalError, match=r"x-1.*not legal.*Its story: no move so far"):
                    machine.fire(event, 1.0)
                assert machine.state is state
            else:
                assert machine.fire(event, 1.0).value == after, (state, event)


@every_life
def test_an_illegal_move_after_legal_ones_tells_them(life: Life) -> None:
    for (state, event), after in life.moves.items():
        refused = [other for other in life.events if (after, other) not in life.moves]
        for other in refused:
            machine = life.machine("x-1", state)
            machine.fire(event, 2.0)
            with pytest.raises(InternalError) as caught:
                machine.fire(other, 3.0)
            assert f"2.000 {event.value}: {state.value} -> {after.value}" in str(caught.value)


@every_life
def test_an_end_is_an_end(life: Life) -> None:
    assert {after.value for (state, _), after in life.moves.items() if state.value in life.final} <= life.final
    for (state, _), after in life.moves.items():
        if state.value in life.final:
            assert after is state


@every_life
def test_every_state_is_reached_from_the_first_and_reaches_an_end(life: Life) -> None:
    first = life.machine("x-1").state
    assert reachable(life.moves, first) == set(life.states)
    for state in life.states:
        assert {each.value for each in reachable(life.moves, state)} & life.final


def reachable(moves: Table, start: StrEnum) -> set[StrEnum]:
    seen, todo = {start}, [start]
    while todo:
        here = todo.pop()
        found = {after for (state, _), after in moves.items() if state is here} - seen
        seen |= found
        todo += found
    return seen


@every_life
def test_every_state_and_event_is_documented_where_it_is_defined(life: Life) -> None:
    if life.events is AppEvent:
        return  # AppState belongs to the model
    source = inspect.getsource(sys.modules[life.states.__module__])
    for member in (*life.states, *life.events):
        assert f'= "{member.value}"\n    """' in source, member


def test_a_container_lives_through_a_server_restart() -> None:
    life = container_machine("ct-1", ContainerState.READY)
    life.fire(ContainerEvent.CONTACT_LOST, 1.0)
    life.fire(ContainerEvent.ADOPTED_READY, 2.0)
    life.fire(ContainerEvent.STOP, 3.0)
    assert life.fire(ContainerEvent.EXITED, 4.0) is ContainerState.DEAD


def test_last_words_may_come_after_the_exit() -> None:
    life = container_machine("ct-1", ContainerState.BOOTING)
    life.fire(ContainerEvent.EXITED, 1.0)
    assert life.fire(ContainerEvent.BOOT_FAILED, 1.1) is ContainerState.DEAD
