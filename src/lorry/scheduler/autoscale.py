"""How many containers a function gets: `decide(now, load, machine)`.

The rules of `growth` may each want containers: for the queue, for the floor (`min_containers`), for the
buffer. Gates then cut their sum: the ceiling (`max_containers`), a full disk, a crash loop. If no rule wants
a container, idle ones may go. Containers that answer no more go in any case, and all go with their app.
"""

from __future__ import annotations

from dataclasses import replace

from lorry.scheduler.growth import POLL_INTERVAL, RULES, queue_of
from lorry.scheduler.headcount import Headcount, headcount, idle_since
from lorry.scheduler.load import (
    ContainerView,
    Decision,
    FunctionLoad,
    MachineLoad,
    Phase,
    Reason,
)

__all__ = ["ContainerView", "Decision", "FunctionLoad", "MachineLoad", "Phase", "Reason", "backoff", "decide"]

DISK_FREE_TO_START = 0.05
FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 60.0
LONGEST_BACKOFF_WITH_QUEUE = 5.0
"""Inputs that wait behind a crash loop learn of it soon: a failed start fails them with its traceback."""


def decide(now: float, load: FunctionLoad, machine: MachineLoad) -> Decision:
    """Pure and idempotent: asked again with the decision applied, it starts and stops nothing."""
    if not load.app_alive:
        return _stop_everything(load)
    count = headcount(load)
    decision = _more(now, load, machine, count) or _fewer(now, load, count)
    return _without_unhealthy(load, decision)


def _more(now: float, load: FunctionLoad, machine: MachineLoad, count: Headcount) -> Decision | None:
    """The sum of the rules' wishes behind the gates; None when no rule wants a container."""
    wishes: list[Decision] = []
    seen = count
    for rule in RULES:
        wish = rule(now, load, machine, seen)
        if wish is not None:
            wishes.append(wish)
            seen = seen.plus(wish.start)
    return _gated(now, load, machine, count, _sum(wishes)) if wishes else None


def _sum(wishes: list[Decision]) -> Decision:
    """One decision: the first wish that starts something gives the reason, else the first obstacle."""
    telling = [wish for wish in wishes if wish.start] or wishes[:1]
    wakes = [wish.wake_at for wish in wishes if wish.wake_at is not None]
    return Decision(
        start=sum(wish.start for wish in wishes),
        reason=telling[0].reason,
        sentence=" ".join(wish.sentence for wish in telling),
        wake_at=min(wakes, default=None),
    )


def _gated(now: float, load: FunctionLoad, machine: MachineLoad, count: Headcount, wish: Decision) -> Decision:
    ceiling = load.scaling.max_containers
    if ceiling is not None and count.total >= ceiling:
        # Before any other obstacle: CPU and memory would be looked at every second for nothing.
        return _at_ceiling(load, count, ceiling)
    if wish.start == 0:
        return wish
    if machine.disk_free_fraction < DISK_FREE_TO_START:
        return _disk_full(now, wish, machine)
    if load.failed_starts and load.last_failed_start is not None:
        return _after_failed_start(now, load, count, wish, load.last_failed_start)
    if ceiling is not None and count.total + wish.start > ceiling:
        room = ceiling - count.total
        sentence = f"{wish.sentence} max_containers={ceiling} leaves room for {room}."
        return replace(wish, start=room, sentence=sentence)
    return wish


def _at_ceiling(load: FunctionLoad, count: Headcount, ceiling: int) -> Decision:
    sentence = f"{queue_of(load)}; max_containers={ceiling} is reached ({count.total} hold a place)."
    return Decision(start=0, reason=Reason.MAX_CONTAINERS, sentence=sentence)


def _disk_full(now: float, wish: Decision, machine: MachineLoad) -> Decision:
    sentence = (
        f"Only {machine.disk_free_fraction:.1%} of the disk is free; no container starts below "
        f"{DISK_FREE_TO_START:.0%} ({wish.start} wanted). `lorry df` shows what takes the space."
    )
    return Decision(start=0, reason=Reason.DISK_FULL, sentence=sentence, wake_at=now + POLL_INTERVAL)


def _after_failed_start(now: float, load: FunctionLoad, count: Headcount, wish: Decision, failed_at: float) -> Decision:
    """One container at a time, and only after a pause, until a start has succeeded."""
    many = load.failed_starts > 1
    failures = f"The last {load.failed_starts} starts failed" if many else "The last start failed"
    if count.starting:
        sentence = f"{failures}; one container is starting, others follow when it is ready."
        return Decision(start=0, reason=Reason.BACKING_OFF, sentence=sentence)
    pause = backoff(load.failed_starts, with_queue=count.short > 0)
    until = failed_at + pause
    if now < until:
        sentence = f"{failures}; the next try is {pause:g} s after the last one, in {until - now:.3g} s."
        return Decision(start=0, reason=Reason.BACKING_OFF, sentence=sentence, wake_at=until)
    return replace(wish, start=1, sentence=f"{wish.sentence} {failures}, so only one for now.")


def backoff(failed_starts: int, *, with_queue: bool) -> float:
    """Seconds from a failed start to the next try: 0.5 s, doubling to 60 s, or to 5 s while inputs wait."""
    longest = LONGEST_BACKOFF_WITH_QUEUE if with_queue else LONGEST_BACKOFF
    return min(longest, FIRST_BACKOFF * 2.0 ** (min(failed_starts, 30) - 1))


def _fewer(now: float, load: FunctionLoad, count: Headcount) -> Decision:
    """The longest idle ones, beyond what floor, buffer and queue keep, go after their window."""
    surplus = min(count.free - count.needed - count.buffer, count.ready - load.scaling.min_containers)
    window = load.scaling.scaledown_window
    leaving = count.idle[: max(0, surplus)]
    stop = tuple(view.container_id for view in leaving if idle_since(view) + window <= now)
    later = [idle_since(view) + window for view in leaving[len(stop) :]]
    wake_at = min(later, default=None)
    if not stop:
        return _enough(load, count, wake_at)
    sentence = f"{len(stop)} of {len(count.idle)} idle containers have had no input for {window:g} s: stop."
    return Decision(start=0, stop=stop, reason=Reason.IDLE, sentence=sentence, wake_at=wake_at)


def _enough(load: FunctionLoad, count: Headcount, wake_at: float | None) -> Decision:
    sentence = (
        f"Enough: {count.ready} ready ({len(count.idle)} idle), {count.starting} starting, "
        f"{load.waiting} inputs waiting, {load.running} running."
    )
    return Decision(start=0, reason=Reason.ENOUGH, sentence=sentence, wake_at=wake_at)


def _stop_everything(load: FunctionLoad) -> Decision:
    stop = tuple(view.container_id for view in load.containers if view.phase is not Phase.STOPPING)
    sentence = f"The app is stopped: {len(stop)} of its containers go."
    return Decision(start=0, stop=stop, reason=Reason.APP_STOPPED, sentence=sentence)


def _without_unhealthy(load: FunctionLoad, decision: Decision) -> Decision:
    """`decision`, with those that answer no more and hold no input told to go as well."""
    gone = tuple(view.container_id for view in load.containers if _is_useless(view))
    if not gone:
        return decision
    sentence = f"{decision.sentence} Stop {', '.join(gone)}: no answer, and no input depends on it."
    reason = decision.reason if decision.start else Reason.UNHEALTHY
    return replace(decision, stop=gone + decision.stop, reason=reason, sentence=sentence)


def _is_useless(view: ContainerView) -> bool:
    return not view.healthy and not view.running and view.phase in (Phase.STARTING, Phase.READY)
