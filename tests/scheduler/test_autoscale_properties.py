"""What holds for every load: limits, idempotence, and that nobody starves in a small simulated machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.model.function import Resources, Scaling
from lorry.scheduler.autoscale import (
    ContainerView,
    Decision,
    FunctionLoad,
    MachineLoad,
    Phase,
    Reason,
    decide,
)
from lorry.scheduler.inventory import Inventory, Reservation
from lorry.scheduler.place import Placed, place

NOW = 1_000.0
past = st.sampled_from([0.0, 0.05, 0.3, 1.0, 5.0, 59.0, 60.0, 61.0, 500.0]).map(lambda ago: NOW - ago)

scalings = st.builds(
    lambda floor, above, buffer, window: Scaling(
        min_containers=floor,
        max_containers=None if above is None else max(1, floor + above),
        buffer_containers=buffer,
        scaledown_window=window,
    ),
    st.integers(0, 4),
    st.none() | st.integers(0, 12),
    st.integers(0, 3),
    st.sampled_from([0.0, 2.0, 60.0]),
)


@st.composite
def views(draw: st.DrawFn, at: int) -> ContainerView:
    phase = draw(st.sampled_from(Phase))
    running = draw(st.integers(0, 4)) if phase in (Phase.READY, Phase.DRAINING) else 0
    return ContainerView(
        container_id=f"ct-{at}",
        phase=phase,
        running=running,
        idle_since=None if running else draw(st.none() | past),
        started_at=draw(past),
        healthy=draw(st.sampled_from([True, True, True, False])),
    )


@st.composite
def loads(draw: st.DrawFn) -> FunctionLoad:
    containers = tuple(draw(views(at)) for at in range(draw(st.integers(0, 12))))
    return FunctionLoad(
        scaling=draw(scalings),
        waiting=draw(st.sampled_from([0, 0, 1, 2, 7, 100])),
        running=sum(view.running for view in containers),
        backlog_since=draw(st.none() | past),
        max_concurrent=draw(st.integers(1, 4)),
        target_concurrent=draw(st.none() | st.integers(1, 4)),
        containers=containers,
        app_alive=draw(st.sampled_from([True, True, True, False])),
        failed_starts=draw(st.sampled_from([0, 0, 1, 9])),
        last_failed_start=draw(st.none() | past),
        measured_peak_memory=draw(st.none() | st.sampled_from([10, 900])),
        memory_request=draw(st.sampled_from([0, 128, 4000])),
        mean_input_seconds=draw(st.none() | st.sampled_from([1e-5, 0.01, 30.0])),
    )


machines = st.builds(
    MachineLoad,
    cores=st.sampled_from([0.5, 1.0, 2.0, 3.5, 16.0]),
    cpu_idle_fraction=st.sampled_from([0.0, 0.19, 0.2, 0.5, 0.9, 1.0]),
    memory_free=st.sampled_from([0, 100, 2_000, 64_000]),
    memory_total=st.just(64_000),
    disk_free_fraction=st.sampled_from([0.01, 0.05, 0.5, 0.5]),
)


def applied(load: FunctionLoad, decision: Decision) -> FunctionLoad:
    """The load as it is right after the shell has done what was decided."""
    kept = tuple(
        replace(view, phase=Phase.STOPPING, running=0) if view.container_id in decision.stop else view
        for view in load.containers
    )
    new = tuple(
        ContainerView(container_id=f"new-{at}", phase=Phase.STARTING, started_at=NOW) for at in range(decision.start)
    )
    return replace(load, containers=kept + new, running=sum(view.running for view in kept))


@settings(max_examples=250)
@given(loads(), machines)
def test_limits_hold_and_every_decision_explains_itself(load: FunctionLoad, machine: MachineLoad) -> None:
    decision = decide(NOW, load, machine)
    assert decision.sentence.endswith(".")
    assert decision.start >= 0
    assert decision.wake_at is None or decision.wake_at > NOW
    assert len(set(decision.stop)) == len(decision.stop)
    ceiling = load.scaling.max_containers
    if ceiling is not None and decision.start:
        assert len(load.containers) + decision.start <= ceiling
    if machine.disk_free_fraction < 0.05 or not load.app_alive:
        assert decision.start == 0
    there = {view.container_id: view for view in load.containers}
    assert all(there[name].phase is not Phase.STOPPING for name in decision.stop)


@settings(max_examples=250)
@given(loads(), machines)
def test_an_app_that_lives_loses_no_input_and_keeps_its_floor(load: FunctionLoad, machine: MachineLoad) -> None:
    load = replace(load, app_alive=True)
    decision = decide(NOW, load, machine)
    stopped = [view for view in load.containers if view.container_id in decision.stop]
    assert all(view.running == 0 for view in stopped)
    ready = [view for view in load.containers if view.phase is Phase.READY and view.healthy]
    left = len(ready) - sum(view.healthy for view in stopped)
    assert left >= min(len(ready), load.scaling.min_containers)
    for view in stopped:
        idle_since = view.started_at if view.idle_since is None else view.idle_since
        assert not view.healthy or NOW - idle_since >= load.scaling.scaledown_window


@settings(max_examples=250)
@given(loads(), machines)
def test_deciding_again_with_the_decision_applied_changes_nothing(load: FunctionLoad, machine: MachineLoad) -> None:
    decision = decide(NOW, load, machine)
    again = decide(NOW, applied(load, decision), machine)
    assert (again.start, again.stop) == (0, ()), again.sentence


@settings(max_examples=250)
@given(loads(), machines)
def test_a_queue_without_any_container_gets_one(load: FunctionLoad, machine: MachineLoad) -> None:
    load = replace(load, containers=(), waiting=max(1, load.waiting), app_alive=True, failed_starts=0)
    decision = decide(NOW, load, replace(machine, disk_free_fraction=0.5))
    assert decision.start >= 1


@settings(max_examples=250)
@given(loads(), machines)
def test_who_waits_for_nothing_that_reports_is_woken(load: FunctionLoad, machine: MachineLoad) -> None:
    """A start that is held back only by the machine or the clock names the time of the next look."""
    decision = decide(NOW, load, machine)
    clocked = {Reason.CPU_BUSY, Reason.MEMORY_FULL, Reason.DISK_FULL, Reason.MEASURING, Reason.SHORT_QUEUE}
    if decision.reason in clocked:
        assert decision.wake_at is not None


# --- a small machine, driven by nothing but events and `wake_at` ------------------------------------------

START_SECONDS = 0.5


@dataclass
class Box:
    """One simulated container."""

    view: ContainerView
    reservation: Reservation
    ready_at: float
    ends: list[float] = field(default_factory=list)


@dataclass
class Job:
    """One simulated function: `waiting` inputs of `seconds` each, that use the fraction `cpu` of a core."""

    scaling: Scaling
    waiting: int
    seconds: float
    cpu: float
    resources: Resources
    concurrent: int
    boxes: dict[str, Box] = field(default_factory=dict)
    made: int = 0


class World:
    """A machine and its functions. Time jumps from event to event, so a lost wake-up is a deadlock here."""

    def __init__(self, inventory: Inventory, jobs: list[Job]) -> None:
        self.inventory, self.jobs, self.now = inventory, jobs, 0.0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.happen()
            wakes = self.decide_until_calm()
            if not any(job.waiting or self.running(job) for job in self.jobs):
                return
            times = [wake for wake in wakes if wake is not None]
            times += [box.ready_at for box in self.boxes() if box.view.phase is Phase.STARTING]
            times += [end for box in self.boxes() for end in box.ends]
            assert times, "inputs wait and nothing will ever happen"
            assert min(times) > self.now
            self.now = min(times)
        raise AssertionError(f"still {[job.waiting for job in self.jobs]} waiting at {self.now}")

    def boxes(self) -> list[Box]:
        return [box for job in self.jobs for box in job.boxes.values()]

    def running(self, job: Job) -> int:
        return sum(len(box.ends) for box in job.boxes.values())

    def happen(self) -> None:
        for job in self.jobs:
            for box in job.boxes.values():
                had = len(box.ends)
                box.ends = [end for end in box.ends if end > self.now]
                if box.view.phase is Phase.STARTING and box.ready_at <= self.now:
                    box.view = replace(box.view, phase=Phase.READY, idle_since=self.now)
                elif had and not box.ends:
                    box.view = replace(box.view, idle_since=self.now)
                if box.view.phase is Phase.READY:
                    self.dispatch(job, box)

    def dispatch(self, job: Job, box: Box) -> None:
        taken = min(job.waiting, job.concurrent - len(box.ends))
        job.waiting -= taken
        box.ends += [self.now + job.seconds] * taken
        idle_since = None if box.ends else box.view.idle_since
        box.view = replace(box.view, running=len(box.ends), idle_since=idle_since)

    def decide_until_calm(self) -> list[float | None]:
        """Decide for everyone, again while a stop has freed something that another one waits for."""
        while True:
            before = self.now
            decisions = [self.decide(job) for job in self.jobs]
            assert before == self.now
            if not any(decision.stop for decision in decisions):
                return [decision.wake_at for decision in decisions]

    def decide(self, job: Job) -> Decision:
        decision = decide(self.now, self.load(job), self.machine())
        for name in decision.stop:
            assert not job.boxes[name].ends
            del job.boxes[name]
        for _ in range(decision.start):
            self.start(job)
        self.check(job)
        return decision

    def start(self, job: Job) -> None:
        answer = place(self.inventory, [box.reservation for box in self.boxes()], job.resources)
        if not isinstance(answer, Placed):
            return
        name = f"ct-{self.jobs.index(job)}-{job.made}"
        job.made += 1
        view = ContainerView(container_id=name, phase=Phase.STARTING, started_at=self.now)
        job.boxes[name] = Box(view=view, reservation=answer.reserved_for(name), ready_at=self.now + START_SECONDS)

    def load(self, job: Job) -> FunctionLoad:
        return FunctionLoad(
            scaling=job.scaling,
            waiting=job.waiting,
            running=self.running(job),
            max_concurrent=job.concurrent,
            containers=tuple(box.view for box in job.boxes.values()),
            memory_request=job.resources.memory,
        )

    def machine(self) -> MachineLoad:
        busy = sum(job.cpu * self.running(job) for job in self.jobs) / self.inventory.cores
        used = sum(box.reservation.memory_mib for box in self.boxes() if box.view.phase is Phase.READY)
        return MachineLoad(
            cores=self.inventory.cores,
            cpu_idle_fraction=max(0.0, 1.0 - busy),
            memory_free=self.inventory.memory_mib - used,
            memory_total=self.inventory.memory_mib,
        )

    def check(self, job: Job) -> None:
        ceiling = job.scaling.max_containers
        assert ceiling is None or len(job.boxes) <= ceiling
        held = [box.reservation for box in self.boxes()]
        assert sum(each.memory_mib for each in held) <= self.inventory.memory_mib
        assert sum(each.cores for each in held) <= self.inventory.cores + 1e-6


def small_jobs() -> st.SearchStrategy[Job]:
    """Floors (at most 1 x 4 GiB each) leave room for one more container on the machine below."""
    return st.builds(
        Job,
        scaling=st.builds(
            Scaling,
            min_containers=st.integers(0, 1),
            max_containers=st.sampled_from([1, 2, 5, None]),
            buffer_containers=st.integers(0, 2),
            scaledown_window=st.sampled_from([0.0, 1.0, 60.0]),
        ),
        waiting=st.integers(0, 30),
        seconds=st.sampled_from([0.01, 1.0, 30.0]),
        cpu=st.sampled_from([0.0, 0.5, 1.0]),
        resources=st.builds(Resources, cpu=st.sampled_from([0.0, 0.125]), memory=st.sampled_from([512, 2048, 4096])),
        concurrent=st.sampled_from([1, 1, 4]),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(small_jobs(), min_size=1, max_size=3), st.sampled_from([1.0, 2.0, 8.0]))
def test_nobody_starves(jobs: list[Job], cores: float) -> None:
    world = World(Inventory(cores=cores, memory_mib=16_384), jobs)
    world.run(steps=1_000)
    for job in jobs:
        assert len(job.boxes) >= job.scaling.min_containers
