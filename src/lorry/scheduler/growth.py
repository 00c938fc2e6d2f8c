"""The three rules that may want more containers, each `(now, load, machine, count) -> Decision | None`.

None: the rule wants nothing. A decision to start 0: it does, and the reason says what stands in the way.

A step of growth assumes that one more container costs what the present ones cost on average: n containers
that leave the fraction f of the CPU idle may become n / (1 - f), at most 2 n, at least n + 1. A step follows
the last start by at least a second, which is how long the CPU is measured. So a thousand sleeping inputs
reach a thousand containers in about ten steps, and busy ones stop at the cores.
"""

from __future__ import annotations

from collections.abc import Callable

from lorry.scheduler.headcount import Headcount
from lorry.scheduler.load import Decision, FunctionLoad, MachineLoad, Reason

IDLE_CPU_TO_GROW = 0.20
GROWTH_INTERVAL = 1.0
"""Seconds between steps of growth: the window over which the shell measures the CPU."""
POLL_INTERVAL = 1.0
"""Seconds after which a full CPU, memory or disk is looked at again; no event tells of those."""
SHORT_QUEUE_SECONDS = 0.020
"""Work below this is done before a new container would be ready (a fork takes 2 to 16 ms)."""
SHORT_QUEUE_PATIENCE = 0.1
"""Seconds. A queue that lasts longer proves the estimate wrong: the containers are stuck on something long, or more
comes than they do."""

Rule = Callable[[float, FunctionLoad, MachineLoad, Headcount], Decision | None]


def for_queue(now: float, load: FunctionLoad, machine: MachineLoad, count: Headcount) -> Decision | None:
    """Inputs wait for which there is no container, counting those that are starting."""
    if not count.short:
        return None
    short_queue = _is_short(now, load)
    if count.live and short_queue:
        return _keep_short_queue(load)
    if count.ready:
        return _grow(now, load, machine, count)
    return _cold(now, load, machine, count, wanted=1 if short_queue else count.short)


def for_floor(now: float, load: FunctionLoad, machine: MachineLoad, count: Headcount) -> Decision | None:
    """`min_containers`, busy or not, as long as the app lives."""
    missing = load.scaling.min_containers - count.live
    if missing <= 0:
        return None
    # Ten imports at once on two cores would make the first one ready five times later.
    start = min(missing, machine.whole_cores - count.starting)
    if start <= 0:
        return _still_starting(load, count)
    sentence = f"min_containers={load.scaling.min_containers} and {count.live} are there: start {start}."
    return Decision(start=start, reason=Reason.FLOOR, sentence=sentence)


def for_buffer(now: float, load: FunctionLoad, machine: MachineLoad, count: Headcount) -> Decision | None:
    """`buffer_containers` idle ones beyond what the queue will take, while the function is active; and the successors
    of slices that are about to end."""
    missing = count.needed + count.buffer - count.free
    # A queue that is short of containers itself would eat the buffer, past the limits of its growth.
    if count.short or missing <= 0:
        return None
    fitting = _fitting(load, machine, count)
    if fitting <= 0:
        return _memory_full(now, load, machine)
    start = min(missing, fitting, machine.whole_cores - count.starting)
    if start <= 0:
        return _still_starting(load, count)
    ending = f" and {load.ending} for slices that end soon" if load.ending else ""
    sentence = (
        f"buffer_containers={load.scaling.buffer_containers}{ending}, and {count.free - count.needed} are spare: "
        f"start {start}."
    )
    return Decision(start=start, reason=Reason.BUFFER, sentence=sentence)


RULES: tuple[Rule, ...] = (for_queue, for_floor, for_buffer)
"""In this order; each sees what those before it start."""


def _cold(now: float, load: FunctionLoad, machine: MachineLoad, count: Headcount, *, wanted: int) -> Decision:
    """Nothing is ready. The first container does not ask whether CPU and memory are free: nobody starves."""
    room = machine.whole_cores - count.starting
    if room <= 0:
        return _still_starting(load, count)
    start = min(wanted, room, max(_fitting(load, machine, count), 0 if count.live else 1))
    if start <= 0:
        return _memory_full(now, load, machine)
    sentence = (
        f"{queue_of(load)} and no container is ready ({count.starting} starting): start {start}, "
        f"at most one per core ({machine.whole_cores}) at first."
    )
    wake_at = now + POLL_INTERVAL if start < wanted else None
    return Decision(start=start, reason=Reason.COLD_QUEUE, sentence=sentence, wake_at=wake_at)


def _grow(now: float, load: FunctionLoad, machine: MachineLoad, count: Headcount) -> Decision:
    """There are ready containers, all of them busy. More, if the machine has room for more."""
    if machine.cpu_idle_fraction < IDLE_CPU_TO_GROW and not _of_their_own(load, machine, count):
        return _cpu_busy(now, load, machine)
    fitting = _fitting(load, machine, count)
    if fitting <= 0:
        return _memory_full(now, load, machine)
    # No more unproven containers than proven ones (or cores): a slow import must not let steps pile up.
    unproven = max(machine.whole_cores, count.ready) - count.starting
    if unproven <= 0:
        return _still_starting(load, count)
    if count.live >= machine.whole_cores and now < count.newest_start + GROWTH_INTERVAL:
        return _measuring(load, count)
    start = min(count.short, _step(machine, count), fitting, unproven)
    sentence = (
        f"{queue_of(load)}, {machine.cpu_idle_fraction:.0%} of the CPU is idle and {machine.memory_free} MiB "
        f"of memory are free: start {start} beside {count.live}."
    )
    wake_at = now + GROWTH_INTERVAL if start < count.short else None
    return Decision(start=start, reason=Reason.QUEUE_GROWTH, sentence=sentence, wake_at=wake_at)


def _step(machine: MachineLoad, count: Headcount) -> int:
    if count.live < machine.whole_cores:
        return machine.whole_cores - count.live
    busy = max(1.0 - machine.cpu_idle_fraction, 0.01)
    return max(1, min(count.live, int(count.live * machine.cpu_idle_fraction / busy)))


def _fitting(load: FunctionLoad, machine: MachineLoad, count: Headcount) -> int:
    """Containers that free memory still takes; those that are starting have yet to take theirs."""
    return machine.memory_free // load.container_memory - count.starting


def _of_their_own(load: FunctionLoad, machine: MachineLoad, count: Headcount) -> bool:
    """Runs share the CPU, where calls would wait for it: one may use all of it for days. As far as reservations allow,
    and up to one per core, for more would be slower together than one after the other."""
    return load.runs and count.live < machine.whole_cores


def _is_short(now: float, load: FunctionLoad) -> bool:
    if load.mean_input_seconds is None or load.backlog_since is None:
        return False
    fresh = now < load.backlog_since + SHORT_QUEUE_PATIENCE
    return fresh and load.mean_input_seconds * load.waiting < SHORT_QUEUE_SECONDS


def _keep_short_queue(load: FunctionLoad) -> Decision:
    assert load.mean_input_seconds is not None
    assert load.backlog_since is not None
    work = load.mean_input_seconds * load.waiting * 1000
    return Decision(
        start=0,
        reason=Reason.SHORT_QUEUE,
        sentence=f"{queue_of(load)}, about {work:.3g} ms of work: done before a new container is ready.",
        wake_at=load.backlog_since + SHORT_QUEUE_PATIENCE,
    )


def _still_starting(load: FunctionLoad, count: Headcount) -> Decision:
    sentence = f"{queue_of(load)}; {count.starting} are still starting, more follow once they are ready."
    return Decision(start=0, reason=Reason.STILL_STARTING, sentence=sentence)


def _measuring(load: FunctionLoad, count: Headcount) -> Decision:
    sentence = f"{queue_of(load)}; how busy {count.live} containers keep the CPU is being measured."
    wake_at = count.newest_start + GROWTH_INTERVAL
    return Decision(start=0, reason=Reason.MEASURING, sentence=sentence, wake_at=wake_at)


def _cpu_busy(now: float, load: FunctionLoad, machine: MachineLoad) -> Decision:
    sentence = (
        f"{queue_of(load)}; {machine.cpu_idle_fraction:.0%} of the CPU is idle, "
        f"and more containers start only from {IDLE_CPU_TO_GROW:.0%}."
    )
    return Decision(start=0, reason=Reason.CPU_BUSY, sentence=sentence, wake_at=now + POLL_INTERVAL)


def _memory_full(now: float, load: FunctionLoad, machine: MachineLoad) -> Decision:
    source = "the peak measured" if load.measured_peak_memory else "memory="
    sentence = (
        f"{queue_of(load)}; {machine.memory_free} MiB of {machine.memory_total} are free, and one more "
        f"container takes {load.container_memory} MiB ({source}), beside those that are starting."
    )
    return Decision(start=0, reason=Reason.MEMORY_FULL, sentence=sentence, wake_at=now + POLL_INTERVAL)


def queue_of(load: FunctionLoad) -> str:
    """The queue in words, to begin a sentence."""
    if load.waiting == 1:
        return "1 input waits"
    return f"{load.waiting or 'No'} inputs wait"
