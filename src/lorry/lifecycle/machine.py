"""A table-driven state machine: legal moves are a dict, anything else raises with the object's story."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from lorry.errors import InternalError

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)

STORY_LENGTH = 32
"""Moves that a machine remembers. A longer life keeps the newest ones and a count of the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move(Generic[S, E]):
    """One line of an object's story: at `at` (monotonic seconds) `event` took it from `before` to `after`."""

    at: float
    event: E
    before: S
    after: S

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.event.value}: {self.before.value} -> {self.after.value}"


class Machine(Generic[S, E]):
    """The state of one object, and how it came to it."""

    __slots__ = ("_count", "_story", "_table", "state", "subject")

    def __init__(self, subject: str, table: Mapping[tuple[S, E], S], state: S) -> None:
        """`subject` names the object in errors, such as `container ct-3f2a`."""
        self.subject = subject
        self.state = state
        self._table = table
        self._story: deque[Move[S, E]] = deque(maxlen=STORY_LENGTH)
        self._count = 0

    def fire(self, event: E, now: float) -> S:
        """Make the move and return the new state. Raises InternalError, unchanged, where it is not legal."""
        after = self._table.get((self.state, event))
        if after is None:
            raise InternalError(self._complaint(event, now))
        self._story.append(Move(at=now, event=event, before=self.state, after=after))
        self._count += 1
        self.state = after
        return after

    def allows(self, event: E) -> bool:
        """Whether `fire(event)` would be legal now. For requests of people, which may come at any time."""
        return (self.state, event) in self._table

    @property
    def story(self) -> tuple[Move[S, E], ...]:
        """The newest moves, oldest first; at most STORY_LENGTH."""
        return tuple(self._story)

    def _complaint(self, event: E, now: float) -> str:
        legal = ", ".join(event.value for state, event in self._table if state == self.state) or "nothing"
        head = f"{self.subject}: {event.value!r} at {now:.3f} is not legal in state {self.state.value!r}"
        return f"{head} (legal: {legal}). Its story: {self._tale()}"

    def _tale(self) -> str:
        if not self._story:
            return "no move so far"
        forgotten = self._count - len(self._story)
        start = f"({forgotten} earlier moves) " if forgotten else ""
        return start + "; ".join(str(move) for move in self._story)
