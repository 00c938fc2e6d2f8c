"""Which input runs where, and what becomes of it. Pure: events in, effects out; promises 1 and 2 live here.

A *work* is some inputs of one chunk. Handing it to a container makes a *lease*; every message about it names
the lease, and a message whose lease is not the current one is stale and changes nothing. A work that is lost
with its container is queued again: halved while it has several inputs, so that the one that kills containers
is found, and given up after `MAX_DEATHS` deaths in which it ran alone.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from lorry.model import selection as sel
from lorry.model.function import RetryPolicy
from lorry.model.records import Selection, Status
from lorry.scheduler import retry

MAX_DEATHS = 8
"""An input that ran alone in this many containers that died under it is not tried again (SDK.md, Calls)."""
KILL_GRACE = 5.0
"""Seconds between asking user code to stop and killing its container (DESIGN.md section 3)."""

Key = tuple[bytes, int]
"""(call, chunk)"""


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """Inputs of one chunk that wait, run and fail together."""

    call: bytes
    chunk: int = 0
    target: int
    indices: Selection = ((0, 1),)
    count: int = 1
    total: int = 1
    journaled: bool = False
    batch: bool = False
    """Its payload is a list of inputs (a map), even if it has only one."""
    stream: bool = False
    again: bool = False
    """A client sent it a second time, or the journal did after a restart: a container may still have it."""
    attempts: dict[int, int] = field(default_factory=dict)
    """User attempts used up, by index; missing means none."""
    deaths: int = 0
    suspect: bool = False
    """Its last container died with several works in it: it runs alone from now on."""
    delivered: bool = False
    """A generator that has given a value cannot be started again."""
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class Lease:
    number: int
    work: Work
    container: str
    started: float
    asked: float | None = None
    """When the container was told to stop it."""


@dataclass(slots=True, eq=False)
class Slot:
    """A container that takes inputs."""

    container: str
    target: int
    capacity: int
    inputs_left: int | None = None
    leases: dict[int, Lease] = field(default_factory=dict)
    draining: bool = False
    idle_since: float | None = None
    """When its last lease ended; None while it has one."""

    def takes(self, work: Work) -> bool:
        if self.draining or len(self.leases) >= self.capacity:
            return False
        if self.leases:
            return not work.suspect and not any(lease.work.suspect for lease in self.leases.values())
        return True


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


@dataclass(slots=True, eq=False)
class Queue:
    """All works and containers of one function (or one bound variant of it)."""

    target: int
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float = 300.0
    pending: deque[Work] = field(default_factory=deque)
    delayed: list[tuple[float, int, Work]] = field(default_factory=list)
    held: list[Work] = field(default_factory=list)
    """Maybe running in a container that has not come back yet."""
    slots: dict[str, Slot] = field(default_factory=dict)
    share: int = 1
    """Inputs of one chunk that a container gets at once. The shell sets it from the measured time of an input: a
    journaled chunk is as large as its client found handy, not as large as its work."""
    missing: set[str] = field(default_factory=set)
    """Containers that lived before a restart and have neither reconnected nor died."""

    @property
    def waiting(self) -> int:
        return sum(work.count for work in self.pending)


class Dispatcher:
    def __init__(self, epoch: int) -> None:
        self._next = epoch << 32
        self._sequence = 0
        self.queues: dict[int, Queue] = {}
        self.leases: dict[int, Lease] = {}
        self._slots: dict[str, Slot] = {}
        self._known: dict[Key, list[Work]] = {}

    # Functions

    def open(self, target: int, policy: RetryPolicy, timeout: float) -> Queue:
        """The queue of a function; made at its first mention."""
        queue = self.queues.get(target)
        if queue is None:
            queue = self.queues[target] = Queue(target, policy, timeout)
        return queue

    def expect(self, target: int, container: str) -> None:
        """After a restart: this container lived; works sent again wait until it is adopted or lost."""
        self.queues[target].missing.add(container)

    # Works come

    def submit(self, work: Work, now: float) -> list[Effect] | None:
        """Queue a work, or send it at once. None if it is known already: nothing changes then."""
        known = self._known.get((work.call, work.chunk))
        if known is not None:
            for other in known:
                other.again = True
            return None
        self._known[work.call, work.chunk] = [work]
        queue = self.queues[work.target]
        if work.again and queue.missing:
            queue.held.append(work)
            return []
        if queue.pending or not (slot := self._slot_for(queue, work)):
            queue.pending.append(work)
            return []
        if work.count <= queue.share:
            return self._send(slot, work, now)
        queue.pending.append(work)
        return self._fill_any(queue, now)

    def calls_of(self, target: int) -> set[bytes]:
        """Calls with works of this function."""
        return {call for (call, _), works in self._known.items() if works and works[0].target == target}

    def knows(self, call: bytes, chunk: int = 0) -> bool:
        return (call, chunk) in self._known

    def _slot_for(self, queue: Queue, work: Work) -> Slot | None:
        # Newest first: it is the warmest, and the oldest may go idle and be scaled down.
        for slot in reversed(queue.slots.values()):
            if slot.takes(work):
                return slot
        return None

    def _send(self, slot: Slot, work: Work, now: float) -> list[Effect]:
        self._next += 1
        lease = Lease(self._next, work, slot.container, now)
        self.leases[lease.number] = slot.leases[lease.number] = lease
        slot.idle_since = None
        effects: list[Effect] = [Send(slot.container, lease.number, work)]
        if slot.inputs_left is not None:
            slot.inputs_left -= work.count
            if slot.inputs_left <= 0:
                slot.draining = True
        return effects

    def _fill(self, slot: Slot, now: float) -> list[Effect]:
        """Give a container what waits."""
        queue = self.queues[slot.target]
        effects: list[Effect] = []
        while queue.pending and slot.takes(queue.pending[0]):
            effects += self._send(slot, self._next_share(queue), now)
        return effects

    def _next_share(self, queue: Queue) -> Work:
        """The first waiting work, or as much of it as one container should have at once."""
        work = queue.pending[0]
        if work.count <= queue.share:
            return queue.pending.popleft()
        first, rest = sel.split(work.indices, queue.share)
        part = self._part(work, first)
        work.indices, work.count = rest, sel.count(rest)
        return part

    # Containers come and go

    def ready(
        self, container: str, target: int, capacity: int, now: float, inputs_left: int | None = None
    ) -> list[Effect]:
        slot = Slot(container, target, capacity, inputs_left, idle_since=now)
        self.queues[target].slots[container] = self._slots[container] = slot
        return self._fill(slot, now)

    def adopt(
        self, container: str, target: int, capacity: int, running: Iterable[tuple[int, Work]], now: float
    ) -> list[Effect]:
        """A container of an earlier life of the server is back, with what it still works on."""
        queue = self.queues[target]
        slot = Slot(container, target, capacity)
        queue.slots[container] = self._slots[container] = slot
        for number, work in running:
            work.again = True
            for other in list(self._known.get((work.call, work.chunk), ())):
                self._withdraw(queue, other, work.indices)
                work.journaled |= other.journaled
                work.attempts = other.attempts or work.attempts
            self._known.setdefault((work.call, work.chunk), []).append(work)
            self.leases[number] = slot.leases[number] = Lease(number, work, container, now)
        slot.idle_since = None if slot.leases else now
        return [*self._settle(queue, container, now), *self._fill(slot, now)]

    def _withdraw(self, queue: Queue, work: Work, indices: Selection) -> None:
        """Take indices that turn out to be running from a work that was about to run them again."""
        left = sel.subtract(work.indices, indices)
        work.indices, work.count = left, sel.count(left)
        if not left:
            for waiting in (queue.held, queue.pending):
                if work in waiting:
                    waiting.remove(work)
            self._forget(work)

    def lost(self, container: str, reason: str, now: float, *, charge: bool = True) -> list[Effect]:
        """A container is dead. `charge=False`: the platform killed it for another input's sake."""
        effects: list[Effect] = []
        slot = self._slots.pop(container, None)
        for queue in [self.queues[slot.target]] if slot else self.queues.values():
            queue.slots.pop(container, None)
            effects += self._settle(queue, container, now)
        if slot is None:
            return effects
        alone = len(slot.leases) == 1
        for lease in slot.leases.values():
            del self.leases[lease.number]
            guilty = charge or lease.asked is not None
            effects += self._after_death(lease, reason, alone, guilty, now)
        return effects

    def _after_death(self, lease: Lease, reason: str, alone: bool, guilty: bool, now: float) -> list[Effect]:
        work = lease.work
        if work.cancelled or not work.indices:
            self._forget(work)
            return []
        if work.delivered:
            text = f"{reason}. The generator had delivered values, so it was not started again"
            return [self._end(work, Status.LOST, text)]
        if lease.asked is not None and work.count == 1:
            return self._settle_failure(work, work.indices, Status.TIMEOUT, now) or [
                self._end(work, Status.TIMEOUT, "it ran past its timeout and was killed with its container")
            ]
        if guilty and alone and work.count == 1:
            work.deaths += 1
            if work.deaths >= MAX_DEATHS:
                text = f"{reason}. The input was alone in the container, {work.deaths} times; it is not tried again"
                return [self._end(work, Status.LOST, text)]
        work.suspect |= guilty and not alone
        return self._again_now(work, now)

    def _again_now(self, work: Work, now: float) -> list[Effect]:
        """Queue lost inputs again, before everything else, in halves if they are several."""
        parts = [work]
        if work.count > 1:
            first, second = sel.halves(work.indices)
            other = self._part(work, second)
            work.indices, work.count = first, sel.count(first)
            parts = [work, other]
        queue = self.queues[work.target]
        queue.pending.extendleft(reversed(parts))
        return self._fill_any(queue, now)

    def _part(self, work: Work, indices: Selection) -> Work:
        """A work of its own for some inputs of `work`."""
        part = Work(
            call=work.call,
            chunk=work.chunk,
            target=work.target,
            indices=indices,
            count=sel.count(indices),
            total=work.total,
            journaled=work.journaled,
            batch=work.batch,
            stream=work.stream,
            again=work.again,
            attempts=dict(work.attempts),
            suspect=work.suspect,
        )
        self._known[work.call, work.chunk].append(part)
        return part

    def _fill_any(self, queue: Queue, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for slot in list(queue.slots.values()):
            if not queue.pending:
                break
            effects += self._fill(slot, now)
        return effects

    def _settle(self, queue: Queue, container: str, now: float) -> list[Effect]:
        """One container less that might have held works; when all are known, those still held may run."""
        if container not in queue.missing:
            return []
        queue.missing.discard(container)
        if queue.missing:
            return []
        queue.pending.extend(queue.held)
        queue.held.clear()
        return self._fill_any(queue, now)

    def drain(self, container: str) -> bool:
        """No new inputs for this container. True if it has none now."""
        slot = self._slots.get(container)
        if slot is None:
            return True
        slot.draining = True
        return not slot.leases

    # Results

    def result(self, number: int, indices: Selection | None, status: Status, last: bool, now: float) -> Verdict:
        """`indices` None: all that the lease had. `last`: the container is free of this lease."""
        lease = self.leases.get(number)
        if lease is None:
            return STALE
        work = lease.work
        effects: list[Effect] = []
        deliver: Selection = ()
        if status is Status.YIELD:
            work.delivered = True
            return Verdict(() if work.cancelled else work.indices, work, effects)
        reported = work.indices if indices is None else indices
        valid = not sel.subtract(reported, work.indices) if indices is not None else True
        if valid and not work.cancelled:
            work.indices = () if indices is None else sel.subtract(work.indices, indices)
            work.count = sel.count(work.indices)
            failed = status in (Status.ERROR, Status.TIMEOUT) and not work.delivered
            again = self._settle_failure(work, reported, status, now) if failed else []
            effects += again
            deliver = () if again else reported
        if last:
            effects += self._end_lease(lease, now)
        return Verdict(deliver, work, effects)

    def _settle_failure(self, work: Work, indices: Selection, status: Status, now: float) -> list[Effect]:
        """Retry failed inputs by the user's policy: effects if they run again, nothing if this is the end."""
        policy = self.queues[work.target].policy
        if not policy.max_retries:
            return []
        used = {index: work.attempts.get(index, 0) + 1 for index in sel.indices(indices)}
        decision = retry.decide(policy, max(used.values()), status)
        if isinstance(decision, retry.GiveUp):
            return []
        part = self._part(work, indices)
        part.attempts.update(used)
        if work.indices == indices:  # it died with its container: the new part stands in for it
            self._forget(work)
        self._sequence += 1
        delayed = self.queues[work.target].delayed
        heapq.heappush(delayed, (now + decision.delay, self._sequence, part))
        return [Remember(work.call, work.chunk, used)]

    def _end_lease(self, lease: Lease, now: float) -> list[Effect]:
        del self.leases[lease.number]
        slot = self._slots[lease.container]
        del slot.leases[lease.number]
        work = lease.work
        effects: list[Effect] = []
        if work.indices and not work.cancelled:  # the container gave inputs back unrun
            effects += self._again_now(work, now)
        else:
            self._forget(work)
        if not slot.leases:
            slot.idle_since = now
            if slot.draining:
                return [*effects, Drained(slot.container)]
        return effects + self._fill(slot, now)

    def _forget(self, work: Work) -> None:
        parts = self._known.get((work.call, work.chunk))
        if parts is None:
            return
        if work in parts:
            parts.remove(work)
        if not parts:
            del self._known[work.call, work.chunk]

    def _end(self, work: Work, status: Status, text: str) -> Finish:
        indices, work.indices, work.count = work.indices, (), 0
        self._forget(work)
        return Finish(work, indices, status, text)

    def progress(self, number: int, elapsed: float, now: float) -> None:
        """The container says that its current input of this lease has run for `elapsed` seconds only."""
        lease = self.leases.get(number)
        if lease is not None and not lease.work.cancelled:
            lease.started = now - elapsed
            lease.asked = None

    # Endings that nobody in a container decides

    def cancel(self, call: bytes, target: int, text: str, now: float) -> list[Effect]:
        """Drop what waits, ask containers to stop what runs; every input ends as CANCELLED at once."""
        queue = self.queues[target]
        effects: list[Effect] = []
        works = [work for key in [k for k in self._known if k[0] == call] for work in self._known[key]]
        for lease in self.leases.values():
            if lease.work.call == call and not lease.work.cancelled:
                lease.work.cancelled, lease.asked = True, now
                effects += [
                    Finish(lease.work, lease.work.indices, Status.CANCELLED, text),
                    Stop(lease.container, lease.number, cancel=True),
                ]
        for work in works:
            if not work.cancelled:
                work.cancelled = True
                effects.append(self._end(work, Status.CANCELLED, text))
        queue.pending = deque(work for work in queue.pending if work.call != call)
        queue.held = [work for work in queue.held if work.call != call]
        queue.delayed = [entry for entry in queue.delayed if entry[2].call != call]
        heapq.heapify(queue.delayed)
        return effects

    def fail_waiting(self, target: int, status: Status, text: str) -> list[Effect]:
        """Containers of this function cannot start: everything that waits ends so."""
        queue = self.queues[target]
        works = [*queue.pending, *queue.held, *(entry[2] for entry in queue.delayed)]
        queue.pending.clear()
        queue.held.clear()
        queue.delayed.clear()
        return [self._end(work, status, text) for work in works if not work.cancelled]

    def tick(self, now: float) -> list[Effect]:
        """Retries that are due, inputs whose time is over, containers that would not stop."""
        effects: list[Effect] = []
        for queue in self.queues.values():
            while queue.delayed and queue.delayed[0][0] <= now:
                queue.pending.append(heapq.heappop(queue.delayed)[2])
                effects += self._fill_any(queue, now)
        for lease in self.leases.values():
            if lease.asked is None:
                if now - lease.started >= self.queues[lease.work.target].timeout:
                    lease.asked = now
                    effects.append(Stop(lease.container, lease.number, cancel=False))
            elif now - lease.asked >= KILL_GRACE:
                effects.append(Kill(lease.container, "an input would not stop"))
        return effects

    def next_due(self) -> float | None:
        """When the next retry is due."""
        due = [queue.delayed[0][0] for queue in self.queues.values() if queue.delayed]
        return min(due, default=None)
