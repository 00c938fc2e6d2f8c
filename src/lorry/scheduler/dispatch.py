"""Which input runs where, and what becomes of it. Pure: events in, effects out; promises 1 and 2 live here.

A *work* is some inputs of one chunk. Handing it to a container makes a *lease*; every message about it names
the lease, and a message whose lease is not the current one is stale and changes nothing. A work that is lost
with its container is queued again: halved while it has several inputs, so that the one that kills containers
is found, and given up after `MAX_DEATHS` deaths in which it ran alone.

An index without an outcome is in exactly one work that the register knows. That waits in its queue (`pending`,
`held`, `delayed`) or runs under a lease. A work without indices is over and known no more, even if a container
goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterable

from lorry.model import selection as sel
from lorry.model.function import ResumePolicy, RetryPolicy
from lorry.model.records import Selection, Status
from lorry.scheduler.adoption import claimed
from lorry.scheduler.outcomes import MAX_DEATHS, Death, Outcomes
from lorry.scheduler.overtime import ask_to_stop, check_times
from lorry.scheduler.queue import Queue
from lorry.scheduler.register import Register
from lorry.scheduler.work import (
    STALE,
    Drained,
    Effect,
    Finish,
    Kill,
    Lease,
    Remember,
    Send,
    Slot,
    Stop,
    Verdict,
    Work,
)
from lorry.timeouts import KILL_GRACE

__all__ = ["Dispatcher", "Drained", "Effect", "Finish", "Key", "Kill", "Lease", "Queue", "Remember", "Send"]
__all__ += ["KILL_GRACE", "MAX_DEATHS", "STALE", "Slot", "Stop", "Verdict", "Work"]

Key = tuple[bytes, int]
"""(call, chunk)"""
_YIELD = Status.YIELD
_RETRIED = (Status.ERROR, Status.TIMEOUT)
_RESUMED = (Status.CONTINUE, *_RETRIED)
"""Looked up once: a member of an enum costs 0.05 µs each time."""
Claims = Iterable[tuple[int, Work]]
"""(lease number, what a container says that it is)"""


class Dispatcher:
    def __init__(self, epoch: int) -> None:
        self._next = epoch << 32
        self.queues: dict[int, Queue] = {}
        self.leases: dict[int, Lease] = {}
        self._slots: dict[str, Slot] = {}
        self._expected: dict[str, Queue] = {}
        self._register = Register()
        self._outcomes = Outcomes(self._register)

    # Functions

    def open(self, target: int, policy: RetryPolicy, timeout: float, resumable: ResumePolicy | None = None) -> Queue:
        """The queue of a function; made at its first mention."""
        queue = self.queues.get(target)
        if queue is None:
            queue = self.queues[target] = Queue(target, policy, timeout, resumable)
        return queue

    def expect(self, target: int, container: str) -> None:
        """After a restart: this container lived; works sent again wait until it is adopted or lost."""
        queue = self._expected[container] = self.queues[target]
        queue.missing.add(container)

    # Works come

    def submit(self, work: Work, now: float) -> list[Effect] | None:
        """Queue a work, or send it at once. None if it is known already: nothing runs twice for that."""
        if not self._register.add_new(work):
            for known in self._register.chunk(work.call, work.chunk):
                known.again, known.bare = True, False
            return None
        queue = self.queues[work.target]
        if work.again and queue.missing:
            queue.held[work] = None
            return []
        if queue.free and work.count == 1 and not queue.pending.inputs:
            return [self._send(queue, queue.free.popitem()[1], work, now)]
        queue.pending.append(work)
        return self._fill(queue, now) if queue.free else []

    def calls_of(self, target: int) -> set[bytes]:
        """Calls with works of this function."""
        return self._register.calls_of(target)

    def knows(self, call: bytes, chunk: int = 0) -> bool:
        """Whether an input of this chunk has no outcome yet."""
        return self._register.knows(call, chunk)

    def works_of(self, call: bytes) -> list[Work]:
        """Those that are not over; their `lease` says what runs."""
        return self._register.call(call)

    # Works and containers meet

    def _send(self, queue: Queue, slot: Slot, work: Work, now: float) -> Send:
        """The slot is in `free` no more; it returns if it still has room."""
        number = self._next = self._next + 1
        lease = Lease(number, work, slot.container, now, work.indices)
        self.leases[number] = slot.leases[number] = work.lease = lease
        slot.idle_since = None
        if slot.inputs_left is not None:
            slot.spend(work.count)
        if work.suspect:
            slot.alone = True
        elif slot.capacity > 1:
            queue.offer(slot)
        queue.wake_at(now + queue.timeout)
        return Send(slot.container, number, work)

    def _fill(self, queue: Queue, now: float) -> list[Effect]:
        """Hand out what waits, as far as there is room."""
        effects: list[Effect] = []
        pending = queue.pending
        if pending.suspects or queue.reserved:
            self._isolate_suspects(queue, now, effects)
        while pending.ordinary and queue.free:
            slot = queue.free.popitem()[1]
            effects.append(self._send_next(queue, slot, next(iter(pending.ordinary)), now))
        return effects

    def _isolate_suspects(self, queue: Queue, now: float, effects: list[Effect]) -> None:
        for slot in queue.idle():
            if not queue.pending.suspects:
                break
            queue.free.pop(slot.container, None)
            if slot is queue.reserved:
                queue.reserved = None
            effects.append(self._send_next(queue, slot, next(iter(queue.pending.suspects)), now))
        queue.reserve()

    def _send_next(self, queue: Queue, slot: Slot, work: Work, now: float) -> Send:
        """The first waiting work, or as much of it as one container should have at once."""
        part = queue.take(work, queue.portion(slot))
        if part is not None:
            self._register.add(part)
            work = part
        return self._send(queue, slot, work, now)

    # Containers come and go

    def ready(
        self, container: str, target: int, capacity: int, now: float, inputs_left: int | None = None
    ) -> list[Effect]:
        """It takes inputs from now on. Said twice, it changes nothing."""
        if container in self._slots:
            return []
        queue = self.queues[target]
        slot = self._slots[container] = Slot(container, target, capacity, inputs_left, idle_since=now)
        queue.add(slot)
        self._arrived(container)
        return self._fill(queue, now)

    def adopt(
        self, container: str, target: int, capacity: int, running: Claims, now: float, inputs_left: int | None = None
    ) -> list[Effect]:
        """A container of an earlier life of the server is back, with what it says that it still works on.

        It keeps what nobody else has begun. The rest (finished, cancelled, or running elsewhere by now) it is
        told to stop. `inputs_left=0`: it ends with what it has."""
        if container in self._slots:
            return []
        queue = self.queues[target]
        slot = self._slots[container] = Slot(container, target, capacity, inputs_left)
        effects: list[Effect] = []
        for number, claim in running:
            if number not in self.leases:
                effects += self._adopt_lease(queue, slot, number, claim, now)
        slot.idle_since = None if slot.leases else now
        slot.alone = any(lease.work.suspect for lease in slot.leases.values())
        slot.spend(0)
        queue.add(slot)
        self._arrived(container)
        if slot.draining and not slot.leases:
            effects.append(Drained(container))
        return effects + self._fill(queue, now)

    def _adopt_lease(self, queue: Queue, slot: Slot, number: int, claim: Work, now: float) -> list[Effect]:
        sent = claim.indices
        work = claimed(self._register, queue, claim)
        lease = Lease(number, work, slot.container, now, sent)
        self.leases[number] = slot.leases[number] = lease
        queue.wake_at(now + queue.timeout)
        if work.indices:
            work.lease = lease
            return []
        return [ask_to_stop(queue, lease, now, cancel=True)]

    def _arrived(self, container: str) -> None:
        """One container less that might have held works; when all are known, those still held may run."""
        queue = self._expected.pop(container, None)
        if queue is None:
            return
        queue.missing.discard(container)
        if not queue.missing:
            for work in reversed(queue.held):
                queue.pending.append(work, first=True)
            queue.held.clear()

    def lost(
        self, container: str, reason: str, now: float, *, charge: bool = True, own_limit: bool = False
    ) -> list[Effect]:
        """A container is dead. `charge=False`: the platform killed it for another input's sake. `own_limit`: it passed
        a limit that its function set."""
        effects: list[Effect] = []
        slot = self._slots.pop(container, None)
        queue = self._expected.get(container)
        self._arrived(container)
        if slot is not None:
            queue = self.queues[slot.target]
            death = Death(reason, alone=len(slot.leases) == 1, charge=charge, own_limit=own_limit)
            for lease in reversed(slot.leases.values()):
                del self.leases[lease.number]
                self._outcomes.died(queue, lease, death, now, effects)
            queue.remove(slot)
        return effects + self._fill(queue, now) if queue is not None else effects

    def drain(self, container: str) -> bool:
        """No new inputs for this container. True if it has none now."""
        slot = self._slots.get(container)
        if slot is None:
            return True
        slot.draining = True
        self.queues[slot.target].close(slot)
        return not slot.leases

    # Results

    def result(
        self, container: str, number: int, indices: Selection | None, status: Status, last: bool, now: float
    ) -> Verdict:
        """`indices` None: all that the lease had. `last`: the container is free of this lease.

        Each index gets one outcome: what is not this work's any more is dropped, and since nobody here can
        take a payload apart, the whole result with it; what it leaves open runs again."""
        lease = self.leases.get(number)
        if lease is None or lease.container != container:
            return STALE
        work = lease.work
        effects: list[Effect] = []
        deliver: Selection = ()
        reported = lease.sent if indices is None else indices
        if status is _YIELD:
            deliver = work.indices
            work.delivered = True
        elif reported and sel.covers(work.indices, reported):
            deliver = self._outcome(lease, reported, status, now, effects)
        elif not sel.covers(lease.sent, reported):
            effects.append(self._blame(lease, now, "it sent a result for inputs that it was not given"))
        if last:
            self._end_lease(lease, now, effects)
        return Verdict(deliver, work, effects)

    def _blame(self, lease: Lease, now: float, reason: str) -> Kill:
        lease.blamed = True
        slot = self._slots[lease.container]
        slot.killed = now
        self.queues[slot.target].close(slot)
        return Kill(lease.container, reason)

    def _outcome(
        self, lease: Lease, reported: Selection, status: Status, now: float, effects: list[Effect]
    ) -> Selection:
        """What of it is final; the rest is retried."""
        work = lease.work
        queue = self.queues[work.target]
        if queue.resumable is not None and status in _RESUMED:
            return self._attempt_over(queue, lease, status, now, effects)
        retried: Selection = ()
        if status in _RETRIED and not work.delivered:
            retried = self._outcomes.retried(queue, work, reported, status, now, effects)
        if reported == work.indices:
            self._register.forget(work)
        else:
            work.narrow(sel.subtract(work.indices, reported))
            # The next input of the batch begins now, and the one that was over its time has ended.
            lease.started, lease.asked = now, None
            queue.wake_at(now + queue.timeout)
        if not retried:
            return reported
        if queue.pending:
            effects += self._fill(queue, now)
        return sel.subtract(reported, retried)

    def _attempt_over(self, queue: Queue, lease: Lease, status: Status, now: float, effects: list[Effect]) -> Selection:
        """Of a run, in a container that lives. Only an error of its code is delivered as it came."""
        work = lease.work
        end = self._outcomes.attempt_over(queue, lease, status, now, effects)
        if end is None:
            effects += self._fill(queue, now)
        elif end.status is Status.ERROR:
            deliver = work.indices
            self._register.forget(work)
            return deliver
        else:
            effects.append(self._outcomes.end(work, end.status, end.text))
        return ()

    def committed(self, container: str, call: bytes, chunk: int) -> list[Effect]:
        """A run has a new checkpoint from this container, on disk together with a count of no attempts: they are
        counted anew from here."""
        effects: list[Effect] = []
        for work in self._register.chunk(call, chunk):
            self._outcomes.progressed(work, container, effects)
        return effects

    def excuse(self, container: str) -> None:
        """The platform wants it back: what it works on is not to blame for how its attempt ends."""
        slot = self._slots.get(container)
        for lease in slot.leases.values() if slot is not None else ():
            lease.excused = True

    def _end_lease(self, lease: Lease, now: float, effects: list[Effect]) -> None:
        number, work = lease.number, lease.work
        del self.leases[number]
        slot = self._slots[lease.container]
        del slot.leases[number]
        queue = self.queues[slot.target]
        if work.indices:
            self._outcomes.given_back(queue, work, effects)
        if not slot.leases:
            slot.idle_since = now
            slot.alone = False
            if slot.draining:
                effects.append(Drained(slot.container))
        queue.offer(slot)
        if queue.pending.inputs or queue.reserved:
            effects += self._fill(queue, now)

    def progress(self, container: str, number: int, elapsed: float, now: float) -> None:
        """The container says that its current input of this lease has run for `elapsed` seconds only."""
        lease = self.leases.get(number)
        if lease is not None and lease.container == container and lease.work.indices:
            queue = self.queues[lease.work.target]
            lease.started, lease.asked = now - elapsed, None
            queue.wake_at(lease.started + queue.timeout)

    # Endings that nobody in a container decides

    def cancel(
        self, call: bytes, text: str, now: float, *, status: Status = Status.CANCELLED, chunk: int | None = None
    ) -> list[Effect]:
        """Drop what waits, ask containers to stop what runs; every input (of one chunk) ends as `status` at once."""
        effects: list[Effect] = []
        works = self.works_of(call) if chunk is None else self._register.chunk(call, chunk)
        for work in works:
            queue = self.queues[work.target]
            queue.withdraw(work)
            effects.append(self._outcomes.end(work, status, text))
            if work.lease is not None:
                effects.append(ask_to_stop(queue, work.lease, now, cancel=True))
        return effects

    def fail_waiting(self, target: int, status: Status, text: str) -> list[Effect]:
        """Containers of this function cannot start: everything that waits ends so. Unless there are others that
        did: then it waits for those."""
        queue = self.queues[target]
        if queue.starts:
            return []
        works = [*queue.pending, *(work for _, _, work in queue.delayed if work.due is not None)]
        effects: list[Effect] = []
        for work in works:
            if not self._outcomes.outlives_failed_start(queue, work, effects):
                queue.withdraw(work)
                effects.append(self._outcomes.end(work, status, text))
        return effects

    # Time

    def tick(self, now: float) -> list[Effect]:
        """Retries that are due, inputs whose time is over, containers that would not stop."""
        effects: list[Effect] = []
        for queue in self.queues.values():
            if queue.wake <= now:
                queue.ring(now)
                effects += check_times(queue, now)
                if queue.pending:
                    effects += self._fill(queue, now)
        return effects

    def next_due(self) -> float | None:
        """When the next retry is due."""
        due = [work.due for queue in self.queues.values() for _, _, work in queue.delayed if work.due is not None]
        return min(due, default=None)
