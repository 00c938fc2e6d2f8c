"""Asks the pure autoscaler and placer, and does what they say."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from lorry.clock import Clock
from lorry.model.function import Resources
from lorry.model.records import DecisionRecord, Status
from lorry.scheduler import autoscale, evict, slices
from lorry.scheduler.evict import IdleContainer
from lorry.scheduler.inventory import Inventory
from lorry.scheduler.load import Decision, FunctionLoad, MachineLoad
from lorry.scheduler.place import Never, Wait, place
from lorry.server.fleet import Fleet
from lorry.server.machine import LoadMeter
from lorry.server.switch import Switch
from lorry.store.interface import Store
from lorry.timeouts import SCALE_INTERVAL


class Scaler:
    """One decision per function when its load changes, and again when the decision asks for it."""

    def __init__(
        self, clock: Clock, store: Store, switch: Switch, fleet: Fleet, inventory: Inventory, meter: LoadMeter
    ) -> None:
        self._clock = clock
        self._store = store
        self._switch = switch
        self._fleet = fleet
        self._inventory = inventory
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._due: set[int] = set()
        self._reconsider: set[int] = set()
        self._blocked: set[int] = set()
        self._backlog_since: dict[int, float] = {}
        """By function whose inputs wait: since when they have done so at every look."""
        self._alarms: dict[int, asyncio.TimerHandle] = {}
        self.apps: dict[int, tuple[str, bool]] = {}
        """By function: its app's id, and whether the app is alive."""
        self.pending: dict[int, str] = {}
        """By function: why its inputs wait, in the words of the last decision."""
        self._halted = False
        self.refused: Callable[[int, str], None] = lambda _target, _text: None

    def halt(self) -> None:
        """The server ends. Without this, calls that still come would get a new container for each that is stopped."""
        self._halted = True

    def changed(self, target: int) -> None:
        """Decide once all that happens in this turn of the loop is known."""
        if self._halted or target in self._due or not self._matters(target):
            return
        self._due.add(target)
        self._loop.call_soon(self._decide, target)

    def _matters(self, target: int) -> bool:
        """Nothing to decide on the hot path: no queue, and no container that went idle long ago."""
        queue = self._switch.dispatcher.queues.get(target)
        if queue is None or queue.pending.inputs:
            return True
        self._backlog_since.pop(target, None)
        return target not in self._reconsider

    def tick(self) -> None:
        """Every SCALE_INTERVAL: what waits, idles, or has a floor to keep."""
        for target in list(self.apps):
            self._reconsider.discard(target)
            self.changed(target)

    def load(self, target: int) -> FunctionLoad:
        spec = self._fleet.memory.spec(target, self._switch.spec(target))
        queue = self._switch.dispatcher.queues[target]
        slots = queue.slots
        views = []
        for container in self._fleet.containers.values():
            if container.target != target:
                continue
            slot = slots.get(container.container_id)
            view = container.view(len(slot.leases) if slot else 0, slot.idle_since if slot else None)
            if view is not None:
                views.append(view)
        # No successor where it would wait for a GPU that its predecessor holds, or take the place that others wait for.
        resumed = spec.resumable is not None and not spec.resources.gpus and self._blocked <= {target}
        failures, last_failure = self._fleet.failed_starts.get(target, (0, None))
        if queue.waiting:
            self._backlog_since.setdefault(target, self._clock.monotonic())
        else:
            self._backlog_since.pop(target, None)
        return FunctionLoad(
            scaling=spec.scaling,
            waiting=queue.waiting,
            backlog_since=self._backlog_since.get(target),
            running=sum(len(slot.leases) for slot in slots.values()),
            runs=spec.resumable is not None,
            ending=slices.ending_soon(queue, self._clock.monotonic()) if resumed else 0,
            max_concurrent=spec.max_concurrent,
            target_concurrent=spec.target_concurrent,
            containers=tuple(views),
            app_alive=self.apps.get(target, ("", False))[1],
            failed_starts=failures,
            last_failed_start=last_failure,
            measured_peak_memory=self._fleet.peaks.get(target),
            memory_request=spec.resources.memory,
            mean_input_seconds=self._switch.mean_seconds.get(target),
        )

    def _decide(self, target: int) -> None:
        self._due.discard(target)
        self._reconsider.add(target)
        if self._halted or target not in self.apps:
            return
        machine = self._meter.load()
        decision = autoscale.decide(self._clock.monotonic(), self.load(target), machine)
        self._apply(target, decision, machine)

    def _apply(self, target: int, decision: Decision, machine: MachineLoad) -> None:
        self.pending[target] = decision.sentence
        for container_id in decision.stop:
            self._fleet.stop(container_id, decision.sentence)
        for _ in range(decision.start):
            if not self._start_one(target, decision):
                break
        self._set_alarm(target, decision.wake_at)

    def _set_alarm(self, target: int, at: float | None) -> None:
        """In place of the one that the decision before had set: an idle container is decided about four times a second,
        and its `scaledown_window` may be days."""
        before = self._alarms.pop(target, None)
        if before is not None:
            before.cancel()
        if at is not None:
            delay = max(SCALE_INTERVAL / 5, at - self._clock.monotonic())
            self._alarms[target] = self._loop.call_later(delay, self._wake, target)

    def _wake(self, target: int) -> None:
        self._reconsider.discard(target)
        self.changed(target)

    def _start_one(self, target: int, decision: Decision) -> bool:
        spec = self._fleet.memory.spec(target, self._switch.spec(target))
        placed = place(self._inventory, self._fleet.reservations(), spec.resources)
        if isinstance(placed, Never):
            self._refuse(target, placed.sentence)
            return False
        if isinstance(placed, Wait):
            self.pending[target] = placed.sentence
            self._make_room(target, spec.resources)
            return False
        now = self._clock.monotonic()
        waited = now - self._backlog_since.get(target, now)
        self._fleet.start(self.apps[target][0], target, spec, placed, decision.sentence, waited=waited)
        return True

    def _make_room(self, target: int, resources: Resources) -> None:
        """Idle containers of others go; the inputs that wait are reconsidered when they are gone."""
        self._blocked.add(target)
        reservations = self._fleet.reservations()
        for container_id in evict.choose(self._inventory, reservations, resources, self.idle()):
            self._fleet.stop(container_id, f"its place is needed by {self._switch.spec(target).tag}")

    def idle(self) -> list[IdleContainer]:
        """Idle containers above their functions' floors."""
        found: list[IdleContainer] = []
        for number, queue in self._switch.dispatcher.queues.items():
            if queue.pending or number not in self.apps:
                continue
            idle = [s for s in queue.slots.values() if s.idle_since is not None and not s.draining]
            idle.sort(key=lambda slot: slot.idle_since or 0.0)
            spare = len(queue.slots) - self._switch.spec(number).scaling.min_containers
            for slot in idle[: max(0, spare)]:
                found.append(IdleContainer(container_id=slot.container, idle_since=slot.idle_since or 0.0))
        return found

    def freed(self) -> None:
        """A container is gone: what waited for its place may start. Who waits longest is first: a run whose slice has
        just ended would take its own place again otherwise, and runs of several functions would not take turns."""
        blocked, self._blocked = self._blocked, set()
        for target in sorted(blocked, key=lambda target: self._backlog_since.get(target, math.inf)):
            self._wake(target)

    def forget_function(self, target: int) -> None:
        """Its app is stopped and none of its containers is left."""
        self.pending.pop(target, None)
        self._backlog_since.pop(target, None)
        self._set_alarm(target, None)
        for targets in (self._due, self._reconsider, self._blocked):
            targets.discard(target)

    def _refuse(self, target: int, sentence: str) -> None:
        """It can never run here: what waits ends at once, with the reason."""
        now = self._clock.wall()
        record = DecisionRecord(at=now, subject=f"function {target}", kind="refused", reason=sentence)
        self._store.add_decisions([record])
        text = f"CapacityError: {sentence}"
        self._switch.perform(self._switch.dispatcher.fail_waiting(target, Status.PLATFORM, text))
