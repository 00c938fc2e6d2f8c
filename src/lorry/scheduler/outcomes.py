"""What becomes of inputs whose attempt did not end well: another one, or an outcome of the platform's."""

from __future__ import annotations

from typing import NamedTuple

from lorry.model import selection as sel
from lorry.model.records import Selection, Status
from lorry.scheduler import retry, slices
from lorry.scheduler.queue import Queue
from lorry.scheduler.register import Register
from lorry.scheduler.work import Effect, Finish, Lease, Remember, Work

MAX_DEATHS = 8
"""An input that ran alone in this many containers that died under it is not tried again (SDK.md, Calls)."""
MAX_LIMIT_DEATHS = 2
"""Fewer when each passed its own limit of memory or disk: that is the same the next time. Twice, because the first
container may have been filled by inputs before."""


class Death(NamedTuple):
    """How a container ended."""

    reason: str
    alone: bool
    """It had one lease."""
    charge: bool
    """False: the platform killed it. Only what it was killed for is to blame then."""
    own_limit: bool = False
    """It passed a limit that its function set."""


class Outcomes:
    def __init__(self, register: Register) -> None:
        self._register = register
        self._sequence = 0

    def died(self, queue: Queue, lease: Lease, death: Death, now: float, effects: list[Effect]) -> None:
        """Its container is dead; the lease exists no more."""
        work = lease.work
        if not work.indices:
            return
        work.lease = None
        if queue.resumable is not None:
            self._run_died(queue, lease, death, now, effects)
        elif lease.asked is not None and work.count == 1:
            self._killed_for_time(queue, work, now, effects)
        elif work.delivered:
            text = f"{death.reason}. The generator had delivered values, so it was not started again"
            effects.append(self.end(work, Status.LOST, text))
        elif work.bare:
            self._register.forget(work)
        else:
            guilty = death.charge or lease.blamed or lease.asked is not None
            self._lost(queue, work, death, guilty, effects)

    def _run_died(self, queue: Queue, lease: Lease, death: Death, now: float, effects: list[Effect]) -> None:
        work = lease.work
        timed_out = lease.asked is not None
        status = Status.TIMEOUT if timed_out else Status.LOST
        if work.bare:
            self._register.forget(work)
        elif not (death.charge or lease.blamed or timed_out):
            self._queue_first(queue, work, halve=False)
        elif end := self.attempt_over(queue, lease, status, now, effects, reason=death.reason):
            effects.append(self.end(work, end.status, end.text))

    def attempt_over(
        self, queue: Queue, lease: Lease, status: Status, now: float, effects: list[Effect], *, reason: str = ""
    ) -> slices.Next | None:
        """Of a run. Queue it again, at the end: others have waited longer. Or how it ends."""
        work = lease.work
        attempt = slices.Attempt(status=status, committed=lease.committed, excused=lease.excused, reason=reason)
        (first, _), *_ = work.indices
        following = slices.after(work.attempts.get(first, 0), attempt, queue.timeout)
        if following.delay is None:
            return following
        if not work.bare:  # else its client asks again
            self._again(queue, work, work.indices, following.fruitless, now, following.delay, effects)
        self._register.forget(work)
        return None

    def progressed(self, work: Work, container: str, effects: list[Effect]) -> None:
        """A run has a new checkpoint."""
        if work.lease is not None and work.lease.container == container:
            work.lease.committed = True
            work.attempts = {0: 0}
        else:  # the container ended while that was being written: its attempt was counted, and later
            self._count(work, 0, effects)

    def outlives_failed_start(self, queue: Queue, work: Work, effects: list[Effect]) -> bool:
        """Whether it waits for another container although this one did not start: a run that has come some way. It is
        an attempt in vain."""
        if queue.resumable is None or not work.attempts:
            return False
        fruitless = max(work.attempts.values()) + 1
        if fruitless >= slices.MOST_FRUITLESS:
            return False
        self._count(work, fruitless, effects)
        return True

    def _count(self, work: Work, attempts: int, effects: list[Effect]) -> None:
        work.attempts = dict.fromkeys(sel.indices(work.indices), attempts)
        if work.journaled:
            effects.append(Remember(work.call, work.chunk, dict(work.attempts)))

    def _lost(self, queue: Queue, work: Work, death: Death, guilty: bool, effects: list[Effect]) -> None:
        if guilty and death.alone and work.count == 1:
            work.deaths += MAX_DEATHS // MAX_LIMIT_DEATHS if death.own_limit else 1
            if work.deaths >= MAX_DEATHS:
                times = MAX_LIMIT_DEATHS if death.own_limit else MAX_DEATHS
                story = f"The input was alone in the container, {times} times; it is not tried again"
                effects.append(self.end(work, Status.LOST, f"{death.reason}. {story}"))
                return
        work.suspect |= guilty and not death.alone
        self._queue_first(queue, work, halve=guilty)

    def _killed_for_time(self, queue: Queue, work: Work, now: float, effects: list[Effect]) -> None:
        if not work.delivered and self.retried(queue, work, work.indices, Status.TIMEOUT, now, effects):
            self._register.forget(work)
            return
        text = "it ran past its timeout and was killed with its container"
        effects.append(self.end(work, Status.TIMEOUT, text))

    def _queue_first(self, queue: Queue, work: Work, *, halve: bool) -> None:
        if halve and work.count > 1:
            first, second = sel.halves(work.indices)
            queue.pending.append(self._register.split_off(work, second), first=True)
            work.narrow(first)
        queue.pending.append(work, first=True)

    def given_back(self, queue: Queue, work: Work, effects: list[Effect]) -> None:
        """The lease is over, its container lives, and these inputs have no outcome."""
        work.lease = None
        if work.delivered:
            text = "the container gave the generator up. It had delivered values, so it was not started again"
            effects.append(self.end(work, Status.LOST, text))
        elif work.bare:
            self._register.forget(work)
        else:
            self._queue_first(queue, work, halve=False)

    def retried(
        self, queue: Queue, work: Work, failed: Selection, status: Status, now: float, effects: list[Effect]
    ) -> Selection:
        """Queue failed inputs again as far as the user's policy grants it. Returns those."""
        retried: Selection = ()
        for used, again, delay in retry.grants(queue.policy, work.attempts, failed, status):
            retried = sel.union(retried, again)
            if work.bare:
                continue  # its client asks again
            self._again(queue, work, again, used, now, delay, effects)
        return retried

    def _again(
        self, queue: Queue, work: Work, again: Selection, used: int, now: float, delay: float, effects: list[Effect]
    ) -> None:
        part = self._register.split_off(work, again)
        part.suspect = False
        self._count(part, used, effects)
        if delay > 0:
            self._sequence += 1
            queue.delay(part, now + delay, self._sequence)
        else:
            queue.pending.append(part)
            queue.wake_at(now)

    def end(self, work: Work, status: Status, text: str) -> Finish:
        indices = work.indices
        self._register.forget(work)
        return Finish(work, indices, status, text)
