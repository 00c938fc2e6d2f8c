"""What a container that outlived its server may go on with."""

from __future__ import annotations

from lorry.model import selection as sel
from lorry.model.records import Selection
from lorry.scheduler.queue import Queue
from lorry.scheduler.register import Register
from lorry.scheduler.work import Work


def claimed(register: Register, queue: Queue, claim: Work) -> Work:
    """The work that it goes on with: what waits here of its claim. Without indices if that is nothing, because
    it is finished, cancelled, or runs elsewhere by now.

    A call that is unknown and not journaled is a synchronous one: its client has not asked again yet. Nobody
    can take up a generator in the middle, so that one is over."""
    if not claim.journaled and not claim.stream and not register.knows(claim.call, claim.chunk):
        claim.narrow(((0, 1),))
        claim.bare = claim.again = True
        register.add(claim)
        return claim
    mine: Work | None = None
    for work in register.chunk(claim.call, claim.chunk):
        indices = sel.intersect(work.indices, claim.indices)
        if indices and work.lease is None and work.target == queue.target:
            part = _take_over(register, queue, work, indices)
            mine = part if mine is None else _merged(register, mine, part)
    if mine is None:
        claim.narrow(())
        return claim
    return mine


def _take_over(register: Register, queue: Queue, work: Work, indices: Selection) -> Work:
    """Take indices that turn out to be running from a work that was about to run them again."""
    if indices == work.indices:
        queue.withdraw(work)
        return work
    part = register.split_off(work, indices)
    left = sel.subtract(work.indices, indices)
    if queue.pending.remove(work):
        work.narrow(left)
        queue.pending.append(work, first=True)
    else:
        work.narrow(left)
    return part


def _merged(register: Register, work: Work, other: Work) -> Work:
    work.attempts |= other.attempts
    indices = sel.union(work.indices, other.indices)
    register.forget(other)
    work.narrow(indices)
    return work
