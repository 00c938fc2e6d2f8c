"""The simulated server: what `switch`, `fleet`, `journal` and `scaler` do around the pure core, without I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorry.model import selection as sel
from lorry.model.function import Resources
from lorry.model.records import Selection, Status
from lorry.scheduler import autoscale
from lorry.scheduler.dispatch import Dispatcher, Drained, Effect, Finish, Kill, Remember, Send, Stop, Work
from lorry.scheduler.inventory import Inventory, Reservation
from lorry.scheduler.load import ContainerView, FunctionLoad, MachineLoad, Phase
from lorry.scheduler.place import Placed, place
from lorry.testing.simulated_facts import Broken, Chunk, Function, name
from lorry.timeouts import RECONNECT

if TYPE_CHECKING:
    from lorry.testing.simulated_container import Container
    from lorry.testing.simulator import World

MACHINE = MachineLoad(cores=4, cpu_idle_fraction=0.7, memory_free=8000, memory_total=16000)
RESOURCES = Resources(cpu=0.5, memory=512)


@dataclass(slots=True, eq=False)
class Seat:
    """A container as the server knows it."""

    container: Container
    phase: Phase
    started_at: float
    contact: bool = True
    charge: bool = True
    inputs: int = 0
    retired: bool = False


class Server:
    def __init__(self, world: World) -> None:
        self.world = world
        self.life = world.life
        self.dispatcher = Dispatcher(world.life + 1)
        self.seats: dict[str, Seat] = {}
        self.clients: set[bytes] = set()
        """Synchronous calls that somebody waits for."""
        self.unclaimed: dict[bytes, Status] = {}
        """Results for clients that have not asked again yet."""
        self.scale_at = 0.0
        self._inventory = Inventory(cores=world.cores, memory_mib=65536, gpus=())
        self._failed_starts: dict[int, tuple[int, float]] = {}
        for function in world.functions:
            queue = self.dispatcher.open(function.target, function.policy, function.timeout, function.resumable)
            queue.share = world.rng.choice((1, 1, 2, 4))

    def recover(self) -> None:
        """Containers first, then the inputs, as `worker.recover`."""
        world = self.world
        for container in map(world.containers.__getitem__, sorted(world.disk.containers)):
            if container.alive:
                phase = Phase.DRAINING
                self.seats[container.name] = Seat(container, phase, world.now, contact=False)
                self.dispatcher.expect(container.function.target, container.name)
                world.after(RECONNECT, self._give_up, container)
        for chunk in world.disk.chunks.values():
            if len(chunk.done) < chunk.size and chunk.call not in world.disk.cancelled:
                left = sel.subtract(sel.full(chunk.size), sel.from_indices(chunk.done))
                self.submit(replace(_work(chunk), indices=left, count=sel.count(left), again=True,
                                    attempts=dict(chunk.attempts)))  # fmt: skip

    def _give_up(self, container: Container) -> None:
        seat = self.seats.get(container.name)
        if self.world.server is self and seat is not None and not seat.contact:
            seat.charge = False
            self.world.after(self.world.rng.random(), container.die, "gave no answer")

    # Clients

    def submit(self, work: Work) -> None:
        effects = self.dispatcher.submit(work, self.world.now)
        if effects:
            self.perform(effects)

    def call(self, work: Work) -> None:
        status = self.unclaimed.pop(work.call, None)
        if status is not None:
            self.world.after(self.world.latency(), self.world.answer, self.life, work.call, status)
            return
        self.clients.add(work.call)
        self.submit(work)

    def accept(self, chunk: Chunk, again: bool) -> None:
        """Write, acknowledge, run."""
        self.world.after(self.world.rng.random() * 0.02, self._commit, chunk, again)

    def _commit(self, chunk: Chunk, again: bool) -> None:
        world = self.world
        if world.server is not self or chunk.call in world.disk.cancelled:
            return
        new = (chunk.call, chunk.number) not in world.disk.chunks
        if new:
            world.disk.chunks[chunk.call, chunk.number] = chunk
        world.step()
        world.acknowledge(chunk)
        world.step()
        if new:
            self.submit(replace(_work(chunk), again=again))

    def cancel(self, call: bytes, *, journaled: bool) -> None:
        if journaled:
            self.world.disk.cancelled.add(call)
            self.world.settle_cancelled(call)
            self.world.step()
        self.perform(self.dispatcher.cancel(call, "cancelled", self.world.now))

    # Containers

    def hello(self, container: Container, claims: Iterable[tuple[int, Work]]) -> bool:
        seat = self.seats.get(container.name)
        if seat is None or (not seat.contact and not seat.charge):
            return False
        if not seat.contact:
            seat.contact = True
            if not container.ready:
                seat.phase = Phase.STARTING
                return True
            seat.phase = Phase.READY
            works = []
            for lease, work in claims:
                work.journaled = (work.call, work.chunk) in self.world.disk.chunks
                works.append((lease, work))
            function = container.function
            left = 0 if function.max_inputs else None
            self.perform(
                self.dispatcher.adopt(container.name, function.target, function.capacity, works, self.world.now, left)
            )
        return True

    def hear(self, container: Container, what: str, args: tuple[Any, ...]) -> None:
        if container.name in self.seats:
            getattr(self, f"_hear_{what}")(container, *args)

    def _hear_ready(self, container: Container) -> None:
        seat, function = self.seats[container.name], container.function
        if seat.phase is not Phase.STARTING:
            return
        seat.phase = Phase.READY
        self._failed_starts.pop(function.target, None)
        left = function.max_inputs
        now = self.world.now
        self.perform(self.dispatcher.ready(container.name, function.target, function.capacity, now, left))

    def _hear_boot_failed(self, container: Container) -> None:
        seat, target = self.seats[container.name], container.function.target
        if seat.phase is not Phase.STARTING:
            return
        seat.phase = Phase.STOPPING
        count, _ = self._failed_starts.get(target, (0, 0.0))
        self._failed_starts[target] = (count + 1, self.world.now)
        self.world.facts.failed_starts[target] = 1
        failed = self.dispatcher.fail_waiting(target, Status.PLATFORM, "its import raised")
        slots = self.dispatcher.queues[target].slots.values()
        if failed and any(not slot.draining and slot.killed is None for slot in slots):
            raise Broken("inputs were failed although another container takes them")
        self.perform(failed)

    def _hear_progress(self, container: Container, lease: int, elapsed: float) -> None:
        self.dispatcher.progress(container.name, lease, elapsed, self.world.now)

    def _hear_commit(self, container: Container, lease: int) -> None:
        """On disk together with a count of no attempts, as by `Store.move_head`."""
        known = self.dispatcher.leases.get(lease)
        if known is None or known.container != container.name or not known.work.indices:
            return
        call, number = known.work.call, known.work.chunk
        self.world.disk.chunks[call, number].attempts = {0: 0}
        self.world.facts.inputs[call, number, 0].barren = 0
        self.world.step()
        self.perform(self.dispatcher.committed(container.name, call, number))

    def _hear_result(
        self, container: Container, lease: int, indices: Selection | None, status: Status, last: bool
    ) -> None:
        verdict = self.dispatcher.result(container.name, lease, indices, status, last, self.world.now)
        work = verdict.work
        if work is None:
            return
        if status is Status.YIELD:
            for place_ in _places(work, verdict.deliver):
                self.world.facts.inputs[place_].yielded = True
            if verdict.deliver and work.call not in self.clients:
                self.cancel(work.call, journaled=False)
        elif verdict.deliver:
            self._deliver(work, verdict.deliver, status)
        self.world.facts.continued += status is Status.CONTINUE
        self.world.step()
        self.perform(verdict.effects)

    def exited(self, container: Container) -> None:
        seat = self.seats.pop(container.name, None)
        self.world.disk.containers.discard(container.name)
        if seat is None:
            return
        self._count_death(seat)
        if seat.phase is Phase.STARTING:
            target = container.function.target
            count, _ = self._failed_starts.get(target, (0, 0.0))
            self._failed_starts[target] = (count + 1, self.world.now)
        self.perform(self.dispatcher.lost(container.name, "it died", self.world.now, charge=seat.charge))

    def _count_death(self, seat: Seat) -> None:
        slot = self.dispatcher.queues[seat.container.function.target].slots.get(seat.container.name)
        for lease in slot.leases.values() if slot is not None else ():
            for place_ in _places(lease.work, lease.work.indices):
                made = self.world.facts.inputs[place_]
                made.excuses += made.held_by != seat.container.name  # its result is on its way, and comes too late
        if slot is not None and seat.charge and len(slot.leases) == 1:
            (lease,) = slot.leases.values()
            if lease.work.count == 1:
                for place_ in _places(lease.work, lease.work.indices):
                    self.world.facts.inputs[place_].deaths_alone += 1

    # Effects

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self.world.step()
            self.world.note("effect", *_words(effect))
            match effect:
                case Send():
                    self._send(effect)
                case Finish():
                    self._deliver(effect.work, effect.indices, effect.status)
                case Stop():
                    self._stop(effect)
                case Kill():
                    self.seats[effect.container].charge = False
                    self.seats[effect.container].phase = Phase.STOPPING
                    container = self.seats[effect.container].container
                    self.world.after(self.world.rng.random() * 0.2, container.die, "was killed")
                case Drained():
                    self._retire(effect.container)
                case Remember():
                    self.world.after(0.01, self._remember, effect)

    def _send(self, effect: Send) -> None:
        seat, work = self.seats[effect.container], effect.work
        function = seat.container.function
        slot = self.dispatcher.queues[function.target].slots[effect.container]
        seat.inputs += work.count
        if len(slot.leases) > function.capacity:
            raise Broken(f"{effect.container} takes {function.capacity} leases and has {len(slot.leases)}")
        if seat.phase is not Phase.READY or seat.retired:
            raise Broken(f"{effect.container} is {seat.phase} and got an input")
        if function.max_inputs is not None and seat.inputs > function.max_inputs:
            raise Broken(f"{effect.container} got {seat.inputs} inputs, max_inputs={function.max_inputs}")
        for place_ in _places(work, work.indices):
            made = self.world.facts.inputs[place_]
            made.barren += 1
            holder = self.seats.get(made.held_by or "")
            if holder is not None and holder.container.alive and (holder.contact or holder.charge):
                raise Broken(f"{name(place_)} is started again although {made.held_by} has it")
            if made.yielded:
                raise Broken(f"{name(place_)} had delivered a value and is started again")
            if not work.journaled and work.call not in self.clients:
                raise Broken("nobody has the arguments of this call")
        # A copy: what was sent does not change with the work.
        copy = replace(work, lease=None)
        seat.container.after(self.world.latency(), seat.container.run, effect.lease, copy)

    def _stop(self, effect: Stop) -> None:
        if not effect.cancel:
            work = self.dispatcher.leases[effect.lease].work
            for place_ in _places(work, work.indices):
                self.world.facts.inputs[place_].asks += 1
        container = self.seats[effect.container].container
        container.after(self.world.latency(), container.stop, effect.lease, effect.cancel)

    def _retire(self, container: str) -> None:
        seat = self.seats[container]
        if seat.retired:
            raise Broken(f"{container} was drained twice")
        seat.retired = True
        if not self.dispatcher.drain(container):
            raise Broken(f"{container} was called drained and has inputs")
        self._dismiss(seat)

    def _dismiss(self, seat: Seat) -> None:
        seat.phase = Phase.STOPPING
        if not self.dispatcher.drain(seat.container.name):
            seat.charge = False
        seat.container.after(self.world.latency(), seat.container.exit)

    def stop_container(self, container: Container) -> None:
        """A person does. A run may save first."""
        seat = self.seats.get(container.name)
        if seat is None or not seat.contact or seat.phase is not Phase.READY or seat.retired:
            return
        if container.function.resumable is None or self.dispatcher.drain(container.name):
            self._dismiss(seat)
            return
        seat.phase, seat.charge = Phase.STOPPING, False
        self.dispatcher.excuse(container.name)
        for lease in self.dispatcher.queues[container.function.target].slots[container.name].leases.values():
            for place_ in _places(lease.work, lease.work.indices):
                self.world.facts.inputs[place_].excuses += 1
        container.after(self.world.latency(), container.end_slice)
        self.world.after(container.function.resumable.grace, container.die, "did not end in its grace")

    def _remember(self, effect: Remember) -> None:
        chunk = self.world.disk.chunks.get((effect.call, effect.chunk))
        if self.world.server is self and chunk is not None:
            chunk.attempts |= effect.attempts

    def _deliver(self, work: Work, indices: Selection, status: Status) -> None:
        places = _places(work, indices)
        for place_ in places:
            self.world.facts.deliver(place_, status, self.life)
        if work.journaled:
            self.world.after(self.world.rng.random() * 0.02, self._record, work, indices, status)
        elif work.call in self.clients:
            self.clients.discard(work.call)
            self.world.after(self.world.latency(), self.world.answer, self.life, work.call, status)
        else:
            self.unclaimed[work.call] = status

    def _record(self, work: Work, indices: Selection, status: Status) -> None:
        world = self.world
        if world.server is not self or work.call in world.disk.cancelled:
            return
        if not world.disk.record(work.call, work.chunk, set(sel.indices(indices))):
            raise Broken(f"the store refused the result of {indices} of {work.call!r}")
        for place_ in _places(work, indices):
            world.facts.settle(place_, status)

    # How many containers

    def scale(self) -> None:
        self.scale_at = float("inf")
        for function in self.world.functions:
            self._scale(function)

    def _scale(self, function: Function) -> None:
        now = self.world.now
        decision = autoscale.decide(now, self._load(function), MACHINE)
        for container in decision.stop:
            self._dismiss(self.seats[container])
        for _ in range(decision.start):
            reservations = [
                Reservation(container_id=seat.container.name, cores=0.5, memory_mib=512) for seat in self.seats.values()
            ]
            if not isinstance(place(self._inventory, reservations, RESOURCES), Placed):
                self.scale_at = min(self.scale_at, now + 1.0)
                break
            self._start(function)
        if decision.wake_at is not None:
            self.scale_at = min(self.scale_at, max(decision.wake_at, now + 0.05))

    def _start(self, function: Function) -> None:
        world = self.world
        container = world.start_container(function)
        self.seats[container.name] = Seat(container, Phase.STARTING, world.now)
        if len(self.seats) * RESOURCES.cpu > world.cores:
            raise Broken(f"{len(self.seats)} containers on {world.cores} cores")
        ceiling = function.scaling.max_containers
        mine = sum(seat.container.function is function for seat in self.seats.values())
        if ceiling is not None and mine > ceiling:
            raise Broken(f"{mine} containers, max_containers={ceiling}")
        world.after(0.01, self._known, container)

    def _known(self, container: Container) -> None:
        if self.world.server is self and container.alive:
            self.world.disk.containers.add(container.name)

    def _load(self, function: Function) -> FunctionLoad:
        queue = self.dispatcher.queues[function.target]
        views = []
        for seat in self.seats.values():
            if seat.container.function is function:
                slot = queue.slots.get(seat.container.name)
                running, idle = (len(slot.leases), slot.idle_since) if slot else (0, None)
                views.append(
                    ContainerView(
                        container_id=seat.container.name, phase=seat.phase, running=running, idle_since=idle,
                        started_at=seat.started_at,
                    )
                )  # fmt: skip
        failures, failed_at = self._failed_starts.get(function.target, (0, None))
        return FunctionLoad(
            scaling=function.scaling,
            waiting=queue.waiting,
            running=sum(view.running for view in views),
            max_concurrent=function.capacity,
            containers=tuple(views),
            failed_starts=failures,
            last_failed_start=failed_at,
        )


def _words(effect: Effect) -> tuple[Any, ...]:
    """Now: a work is another one when the story is told."""
    if isinstance(effect, Send):
        work = effect.work
        return "Send", effect.container, effect.lease, name((work.call, work.chunk, 0)), work.indices
    if isinstance(effect, Finish):
        work = effect.work
        return "Finish", name((work.call, work.chunk, 0)), effect.indices, effect.status.name
    return (effect,)


def _work(chunk: Chunk) -> Work:
    return Work(
        call=chunk.call,
        chunk=chunk.number,
        target=chunk.function.target,
        indices=sel.full(chunk.size),
        count=chunk.size,
        total=chunk.size,
        journaled=True,
        batch=chunk.batch,
    )


def _places(work: Work, indices: Selection) -> list[tuple[bytes, int, int]]:
    return [(work.call, work.chunk, index) for low, high in indices for index in range(low, high)]
