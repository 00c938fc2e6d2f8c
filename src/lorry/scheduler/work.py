"""What the dispatcher reckons with: works, their leases, the containers that take them, and its effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lorry.model import selection as sel
from lorry.model.records import Selection, Status


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """Inputs of one chunk that wait, run and fail together. No input is in two works at once."""

    call: bytes
    chunk: int = 0
    target: int
    indices: Selection = ((0, 1),)
    """Those without an outcome. Empty: it is over, whatever a container still says about it."""
    count: int = 1
    total: int = 1
    journaled: bool = False
    batch: bool = False
    """Its payload is a list of inputs (a map), even if it has only one."""
    stream: bool = False
    again: bool = False
    """A client sent it a second time, or the journal did after a restart: a container may still have it."""
    attempts: dict[int, int] = field(default_factory=dict)
    """User attempts used up, by index; missing means none. Of a run: attempts in vain since its last checkpoint."""
    deaths: int = 0
    """Of containers in which it ran alone; one for a limit of its own counts for several."""
    suspect: bool = False
    """Its last container died with several works in it: it runs alone from now on."""
    delivered: bool = False
    """A generator that has given a value cannot be started again."""
    bare: bool = False
    """A synchronous call of an earlier life of the server: only its container has its arguments. Once that is
    gone, it exists again when its client asks again."""
    lease: Lease | None = None
    due: float | None = None
    """When its retry is due, while it waits for that."""

    def narrow(self, indices: Selection) -> None:
        self.indices = indices
        self.count = sel.count(indices)

    def part(self, indices: Selection) -> Work:
        """A work of its own for some inputs of this one. The caller takes them out of this one."""
        count = sel.count(indices)
        return Work(
            call=self.call,
            chunk=self.chunk,
            target=self.target,
            indices=indices,
            count=count,
            total=self.total,
            journaled=self.journaled,
            batch=self.batch,
            stream=self.stream,
            again=self.again,
            attempts={i: n for i, n in self.attempts.items() if sel.overlaps(indices, ((i, i + 1),))},
            deaths=self.deaths if count == 1 else 0,
            suspect=self.suspect,
            bare=self.bare,
        )


@dataclass(slots=True, eq=False)
class Lease:
    """A work in a container. The number is a token: a message about another number is stale."""

    number: int
    work: Work
    container: str
    started: float
    sent: Selection
    """What the container was given. Its work may have lost some of it since."""
    asked: float | None = None
    """When the container was told to stop it."""
    blamed: bool = False
    """Its container is killed for what it did under this lease."""
    committed: bool = False
    """Of a run: this attempt has moved its newest checkpoint."""
    excused: bool = False
    """Of a run: the platform wants the container back, so the attempt does not count."""


@dataclass(slots=True, eq=False)
class Slot:
    """A container that takes inputs."""

    container: str
    target: int
    capacity: int
    """Leases at once."""
    inputs_left: int | None = None
    leases: dict[int, Lease] = field(default_factory=dict)
    draining: bool = False
    killed: float | None = None
    """When it was last told to die; it gets nothing more."""
    alone: bool = False
    """Its lease is a suspect's and stays the only one."""
    idle_since: float | None = None
    """When its last lease ended; None while it has one."""

    @property
    def serving(self) -> bool:
        return not self.draining and self.killed is None

    @property
    def has_room(self) -> bool:
        # All of `serving` too, written out: it is asked for twice per call.
        return not (self.draining or self.alone or self.killed is not None) and len(self.leases) < self.capacity

    def spend(self, inputs: int) -> None:
        """Count inputs against `max_inputs`; it drains with the last one."""
        if self.inputs_left is not None:
            self.inputs_left -= inputs
            self.draining |= self.inputs_left <= 0


class Send(NamedTuple):
    container: str
    lease: int
    work: Work


class Finish(NamedTuple):
    """An outcome that the platform itself decided. `text` is for the user."""

    work: Work
    indices: Selection
    status: Status
    text: str


class Stop(NamedTuple):
    """Ask a container to stop one lease: `cancel`, or else its time is over."""

    container: str
    lease: int
    cancel: bool


class Kill(NamedTuple):
    container: str
    reason: str


class Drained(NamedTuple):
    """This container has finished its last input and gets no more: let it end."""

    container: str


class Remember(NamedTuple):
    """Attempts used up, to be journaled."""

    call: bytes
    chunk: int
    attempts: dict[int, int]


Effect = Send | Finish | Stop | Kill | Drained | Remember


class Verdict(NamedTuple):
    """What to do with a result: deliver these indices, and perform the effects."""

    deliver: Selection
    work: Work | None
    effects: list[Effect]


STALE = Verdict((), None, [])
