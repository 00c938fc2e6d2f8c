"""Whether a dispatcher's own books agree with each other."""

from __future__ import annotations

from collections.abc import Iterable

from lorry.model import selection as sel
from lorry.model.records import Selection
from lorry.scheduler.dispatch import Dispatcher
from lorry.scheduler.queue import Queue
from lorry.scheduler.work import Work
from lorry.testing.simulated_facts import Broken


def audit(dispatcher: Dispatcher) -> None:
    """Raises Broken. Looks at everything: for tests."""
    known = [work for call in list(dispatcher._register._calls) for work in dispatcher.works_of(call)]
    _check_disjoint(known)
    leased = {lease.work for lease in dispatcher.leases.values() if lease.work.indices}
    waiting: set[Work] = set()
    for queue in dispatcher.queues.values():
        waiting |= _check_queue(queue)
    if leased & waiting:
        raise Broken("a work waits although it runs")
    if leased | waiting != set(known):
        raise Broken(f"{len(known)} works are known, {len(leased)} run and {len(waiting)} wait")
    for number, lease in dispatcher.leases.items():
        slot = dispatcher._slots[lease.container]
        if slot.leases.get(number) is not lease:
            raise Broken("a lease is not in its container")
        if lease.work.indices and lease.work.lease is not lease:
            raise Broken("a work does not know its lease")


def _check_disjoint(known: Iterable[Work]) -> None:
    seen: dict[tuple[bytes, int], Selection] = {}
    for work in known:
        if not work.indices or work.count != sel.count(work.indices):
            raise Broken(f"a known work has {work.indices} and counts {work.count}")
        before = seen.get((work.call, work.chunk), ())
        if sel.overlaps(before, work.indices):
            raise Broken("an input is in two works")
        seen[work.call, work.chunk] = sel.union(before, work.indices)


def _check_queue(queue: Queue) -> set[Work]:
    pending = list(queue.pending)
    delayed = [work for _, _, work in queue.delayed if work.due is not None]
    places = [*pending, *queue.held, *delayed]
    if len(set(places)) != len(places):
        raise Broken("a work waits in two places")
    if queue.pending.inputs != sum(work.count for work in pending):
        raise Broken(f"{queue.pending.inputs} inputs are said to wait")
    if queue.held and not queue.missing:
        raise Broken("works are held for nobody")
    if any(not work.suspect for work in queue.pending.suspects) or any(w.suspect for w in queue.pending.ordinary):
        raise Broken("a work waits in the wrong line")
    _check_slots(queue)
    return set(places)


def _check_slots(queue: Queue) -> None:
    free = {slot.container for slot in queue.slots.values() if slot.has_room and slot is not queue.reserved}
    if free != set(queue.free):
        raise Broken(f"{sorted(free)} have room, {sorted(queue.free)} are said to")
    if queue.pending.ordinary and queue.free:
        raise Broken("a work waits beside a container with room")
    if queue.pending.suspects and (queue.idle() or not _reserved_for_suspects(queue)):
        raise Broken("a suspect waits and nothing empties itself for it")
    for slot in queue.slots.values():
        works = [lease.work for lease in slot.leases.values()]
        if len(works) > slot.capacity:
            raise Broken(f"{slot.container} has {len(works)} leases and takes {slot.capacity}")
        if any(work.suspect for work in works) and not slot.alone:
            raise Broken("a suspect is not alone")
        if (slot.idle_since is None) != bool(works):
            raise Broken("idle or not?")
        soonest = [
            (lease.started + queue.timeout if lease.asked is None else lease.asked) for lease in slot.leases.values()
        ]
        if slot.killed is None and soonest and queue.wake > max(soonest) + queue.grace + 1.0:
            raise Broken("nobody will look at this lease in time")


def _reserved_for_suspects(queue: Queue) -> bool:
    return queue.reserved is not None or not any(slot.serving and not slot.alone for slot in queue.slots.values())


def audit_empty(dispatcher: Dispatcher) -> None:
    """Everything is over: nothing may be left."""
    audit(dispatcher)
    if len(dispatcher._register) or dispatcher.leases or dispatcher._expected:
        raise Broken("works, leases or expectations are left")
    for queue in dispatcher.queues.values():
        if len(queue.pending) or queue.held or queue.missing or queue.reserved or queue.pending.inputs:
            raise Broken("a queue is not empty")
