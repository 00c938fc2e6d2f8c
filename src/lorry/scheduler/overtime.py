"""Inputs that run longer than they may: ask, and after a grace kill."""

from __future__ import annotations

from lorry.scheduler.queue import Queue
from lorry.scheduler.work import Effect, Kill, Lease, Slot, Stop
from lorry.timeouts import KILL_GRACE


def ask_to_stop(queue: Queue, lease: Lease, now: float, *, cancel: bool) -> Stop:
    """Its container is killed when the lease is not over `queue.grace` seconds later."""
    if lease.asked is None:
        lease.asked = now
        queue.wake_at(now + queue.grace)
    return Stop(lease.container, lease.number, cancel)


def check_times(queue: Queue, now: float) -> list[Effect]:
    """Looks at every lease of a function: only when one of them may be due."""
    effects: list[Effect] = []
    for slot in queue.slots.values():
        overdue = False
        for lease in slot.leases.values():
            if lease.asked is None and now >= lease.started + queue.timeout:
                effects.append(ask_to_stop(queue, lease, now, cancel=False))
            elif lease.asked is None:
                queue.wake_at(lease.started + queue.timeout)
            elif now >= lease.asked + queue.grace:
                overdue = True
            else:
                queue.wake_at(lease.asked + queue.grace)
        if overdue:
            effects += _kill(queue, slot, now)
    return effects


def _kill(queue: Queue, slot: Slot, now: float) -> list[Effect]:
    """Once, and again after a while if it is still there."""
    if slot.killed is not None and now < slot.killed + KILL_GRACE:
        queue.wake_at(slot.killed + KILL_GRACE)
        return []
    slot.killed = now
    queue.close(slot)
    queue.wake_at(now + KILL_GRACE)
    return [Kill(slot.container, "an input would not stop")]
