"""All works and containers of one function: who waits, and who has room. Decides nothing about outcomes."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from lorry.model import selection as sel
from lorry.model.function import ResumePolicy, RetryPolicy
from lorry.scheduler.work import Slot, Work
from lorry.timeouts import KILL_GRACE
from lorry.wire.frames import HEADER_SIZE, MAX_FRAME, MAX_INLINE

MOST_RANGES = (MAX_FRAME - HEADER_SIZE - MAX_INLINE - 2) // 8
"""Ranges of a selection that always fit into a frame beside an inline payload (31). What retries, deaths or a restart
have left of a chunk may be scattered; it is handed out in parts then, each with the chunk's whole payload."""


class Backlog:
    """Works that wait for a container, in order. Suspects, who need one to themselves, stand in a line of
    their own: the others do not wait behind them."""

    __slots__ = ("inputs", "ordinary", "suspects")

    def __init__(self) -> None:
        self.ordinary: OrderedDict[Work, None] = OrderedDict()
        self.suspects: OrderedDict[Work, None] = OrderedDict()
        self.inputs = 0

    def __len__(self) -> int:
        return len(self.ordinary) + len(self.suspects)

    def __iter__(self) -> Iterator[Work]:
        yield from self.suspects
        yield from self.ordinary

    def append(self, work: Work, *, first: bool = False) -> None:
        line = self.suspects if work.suspect else self.ordinary
        line[work] = None
        if first:
            line.move_to_end(work, last=False)
        self.inputs += work.count

    def remove(self, work: Work) -> bool:
        """False if it does not wait here."""
        line = self.suspects if work.suspect else self.ordinary
        if work not in line:
            return False
        del line[work]
        self.inputs -= work.count
        return True


@dataclass(slots=True, eq=False)
class Queue:
    """All works and containers of one function (or one bound variant of it)."""

    target: int
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float = 300.0
    resumable: ResumePolicy | None = None
    """Its inputs are runs."""
    pending: Backlog = field(default_factory=Backlog)
    delayed: list[tuple[float, int, Work]] = field(default_factory=list)
    """A heap of retries. The entry of a work that is not `due` any more is void."""
    held: dict[Work, None] = field(default_factory=dict)
    """Maybe running in a container that has not come back yet."""
    slots: dict[str, Slot] = field(default_factory=dict)
    free: dict[str, Slot] = field(default_factory=dict)
    """Those with room for any ordinary work, the one that worked last at the end."""
    reserved: Slot | None = None
    """Takes nothing more until it is idle, and then a suspect."""
    share: int = 1
    """Inputs of one chunk that a container gets at once. The shell sets it from the measured time of an input:
    a journaled chunk is as large as its client found handy, not as large as its work."""
    missing: set[str] = field(default_factory=set)
    """Containers that lived before a restart and have neither reconnected nor died."""
    wake: float = math.inf
    """Before this there is no retry due and no time over. It may be too early, never too late."""

    @property
    def grace(self) -> float:
        """Seconds between asking a container to stop an input and killing it."""
        return KILL_GRACE if self.resumable is None else self.resumable.grace

    @property
    def starts(self) -> bool:
        """There are containers that take inputs, or may come back, or work on a run, which is all that they take."""
        runs = self.resumable is not None
        return bool(self.missing) or any(slot.serving or (runs and slot.leases) for slot in self.slots.values())

    @property
    def waiting(self) -> int:
        """Inputs."""
        return self.pending.inputs

    # Works

    def delay(self, work: Work, due: float, sequence: int) -> None:
        work.due = due
        heapq.heappush(self.delayed, (due, sequence, work))
        self.wake_at(due)

    def wake_at(self, at: float) -> None:
        if at < self.wake:
            self.wake = at

    def ring(self, now: float) -> None:
        """Retries that are due may run. Whoever calls this finds out when it is to wake for its leases."""
        self.wake = math.inf
        while self.delayed and (self.delayed[0][0] <= now or self.delayed[0][2].due is None):
            work = heapq.heappop(self.delayed)[2]
            if work.due is not None:
                work.due = None
                self.pending.append(work)
        if self.delayed:
            self.wake = self.delayed[0][0]

    def withdraw(self, work: Work) -> None:
        """It waits no more, wherever it did."""
        work.due = None
        self.held.pop(work, None)
        self.pending.remove(work)

    def take(self, work: Work, most: int) -> Work | None:
        """Take at most so many inputs of a waiting work: a new part of it; None when the whole was taken."""
        if len(work.indices) > MOST_RANGES:
            most = min(most, sel.count(work.indices[:MOST_RANGES]))
        if work.count <= most:
            self.pending.remove(work)
            return None
        first, rest = sel.split(work.indices, most)
        part = work.part(first)
        self.pending.inputs -= part.count
        work.narrow(rest)
        return part

    def portion(self, slot: Slot) -> int:
        """Inputs that a container may get in one lease."""
        return self.share if slot.inputs_left is None else min(self.share, slot.inputs_left)

    # Containers

    def add(self, slot: Slot) -> None:
        self.slots[slot.container] = slot
        self.offer(slot)

    def remove(self, slot: Slot) -> None:
        del self.slots[slot.container]
        self.close(slot)

    def offer(self, slot: Slot) -> None:
        """Its room may be used, if it has any."""
        if slot is not self.reserved and slot.has_room:
            self.free[slot.container] = slot

    def close(self, slot: Slot) -> None:
        """It takes nothing more."""
        self.free.pop(slot.container, None)
        if slot is self.reserved:
            self.reserved = None
            self.reserve()

    def idle(self) -> list[Slot]:
        """Containers that can take a suspect."""
        found = [slot for slot in self.free.values() if not slot.leases]
        if self.reserved is not None and not self.reserved.leases:
            found.append(self.reserved)
        return found

    def reserve(self) -> None:
        """While a suspect waits and nothing is idle, the least busy container empties itself for it: without
        that, a busy function would never have one to itself."""
        if not self.pending.suspects:
            before, self.reserved = self.reserved, None
            if before is not None:
                self.offer(before)
        elif self.reserved is None:
            busy = [slot for slot in self.slots.values() if slot.serving and not slot.alone]
            self.reserved = min(busy, key=lambda slot: len(slot.leases), default=None)
            if self.reserved is not None:
                self.free.pop(self.reserved.container, None)
