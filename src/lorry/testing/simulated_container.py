"""A container of the simulated world: boots, runs inputs as their `Input` says, dies, pauses, reconnects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorry.model import selection as sel
from lorry.model.records import Selection, Status
from lorry.scheduler.work import Work
from lorry.testing.simulated_facts import Function, Input
from lorry.timeouts import RECONNECT

if TYPE_CHECKING:
    from lorry.testing.simulator import World


@dataclass(slots=True, eq=False)
class Job:
    """A lease, as the container sees it."""

    lease: int
    call: bytes
    chunk: int
    given: Selection
    stream: bool
    todo: list[int]
    done: list[int] = field(default_factory=list)
    failed: list[tuple[int, Status]] = field(default_factory=list)
    began: float = 0.0
    """When its current input began."""
    step: int = 0
    """Counts what interrupts the current input: a planned end of an older step is void."""
    values: int = 0


class Container:
    def __init__(self, world: World, name: str, function: Function) -> None:
        self.world = world
        self.name = name
        self.function = function
        self.jobs: dict[int, Job] = {}
        self.alive = True
        self.ready = False
        self.link: int | None = world.life
        """The life of the server that it is connected to."""
        self.paused_until = 0.0
        self.reachable_at = 0.0
        """Its messages arrive in order: none before this."""
        self.unsent: list[tuple[Job | None, tuple[Any, ...]]] = []

    # Time and messages

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        self.world.after(delay, self._unless_paused, action, args)

    def _unless_paused(self, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.world.now < self.paused_until:
            self.world.at(self.paused_until, self._unless_paused, action, args)
        else:
            action(*args)

    def tell(self, what: str, *args: Any, ends: Job | None = None) -> None:
        """Send; kept while the server is away. A lease is forgotten when its last result is sent."""
        if self.link is None:
            self.unsent.append((ends, (what, *args)))
            return
        if ends is not None:
            self.jobs.pop(ends.lease, None)
        chaos = self.world.chaos
        self.world.to_server(self, what, args)
        if chaos("duplicate"):
            self.world.to_server(self, what, args)

    def disconnected(self) -> None:
        """The server is dead."""
        if self.alive and self.link is not None:
            self.link = None
            self.world.after(RECONNECT, self._give_up, self.world.life)
            delay = 70.0 if self.world.chaos("late") else self.world.rng.random() * 2.0
            self.after(delay, self._reconnect)

    def _give_up(self, life: int) -> None:
        """It ends by itself when no server comes. (A paused one cannot.)"""
        if self.alive and self.link is None and self.world.life == life and self.world.now >= self.paused_until:
            self.die("gave up")

    def _reconnect(self) -> None:
        world = self.world
        if self.link is not None:
            return
        if world.server is None:
            self.after(0.5, self._reconnect)
            return
        self.link = world.life
        claims = [
            (job.lease, Work(call=job.call, chunk=job.chunk, target=self.function.target, indices=job.given,
                             count=sel.count(job.given), stream=job.stream))
            for job in self.jobs.values()
        ]  # fmt: skip
        if not world.server.hello(self, claims):
            self.die("refused")
            return
        unsent, self.unsent = self.unsent, []
        for ends, message in unsent:
            self.tell(*message, ends=ends)

    def die(self, why: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self.world.note("dies", self.name, why)
        for job in self.jobs.values():
            inputs = [self._input(job, index) for low, high in job.given for index in range(low, high)]
            for made in inputs:
                made.deaths += 1
        self.world.died(self)

    def pause(self, seconds: float) -> None:
        self.paused_until = self.world.now + seconds

    # The server's orders

    def booted(self) -> None:
        self.ready = True
        self.tell("ready")

    def run(self, lease: int, work: Work) -> None:
        job = Job(lease, work.call, work.chunk, work.indices, work.stream, list(sel.indices(work.indices)))
        self.jobs[lease] = job
        for index in job.todo:
            self._input(job, index).held_by = self.name
        self._next(job)

    def stop(self, lease: int, cancel: bool) -> None:
        """The same as SIGUSR1 and a CANCEL or TIMEOUT frame."""
        job = self.jobs.get(lease)
        if job is None or not job.todo:
            return
        index = job.todo[0]
        made = self._input(job, index)
        elapsed = self.world.now - job.began
        if cancel and self.function.resumable is not None:
            self._end_soon(job, Status.CANCELLED)
        elif not cancel and elapsed < self.function.timeout:
            self.tell("progress", lease, elapsed)
        elif not made.stubborn:
            if cancel:
                job.todo = job.todo[:1]
            else:
                made.failures += 1
            self._failed(job, index, Status.CANCELLED if cancel else Status.TIMEOUT)

    def end_slice(self) -> None:
        """The platform wants it back."""
        for job in self.jobs.values():
            if job.todo:
                self._end_soon(job, Status.CONTINUE)

    def _end_soon(self, job: Job, status: Status) -> None:
        """A run comes to its next safe point."""
        if not self._input(job, job.todo[0]).stubborn:
            self.after(self.world.rng.random(), self._end_at_safe_point, job, job.step, status)

    def _end_at_safe_point(self, job: Job, step: int, status: Status) -> None:
        if job.step == step and job.lease in self.jobs:
            self._commit(self._input(job, job.todo[0]), job)
            self._failed(job, job.todo[0], status)

    def _commit(self, made: Input, job: Job) -> None:
        if made.commits:
            made.commits -= 1
            self.tell("commit", job.lease)

    def exit(self) -> None:
        self.die("was told to stop")

    # User code

    def _input(self, job: Job, index: int) -> Input:
        return self.world.facts.inputs[job.call, job.chunk, index]

    def _next(self, job: Job) -> None:
        job.step += 1
        job.began = self.world.now
        index = job.todo[0]
        made = self._input(job, index)
        act = made.act()
        self.world.note("runs", self.name, job.lease, index, act)
        if act != "hang":
            self.after(made.seconds, self._act_ends, job, job.step, act)

    def _act_ends(self, job: Job, step: int, act: str) -> None:
        if job.step != step or job.lease not in self.jobs:
            return
        index = job.todo[0]
        made = self._input(job, index)
        self._commit(made, job)
        if job.stream and job.values < made.yields:
            job.values += 1
            self.tell("result", job.lease, None, Status.YIELD, False)
            self.after(made.seconds, self._act_ends, job, step, act)
        elif act == "kill":
            self.die("was killed by an input")
        elif act == "fail":
            made.failures += 1
            self._failed(job, index, Status.ERROR)
        elif act == "slice":
            self._failed(job, index, Status.CONTINUE)
        else:
            job.todo.pop(0)
            if self.function.capacity > 1 and len(job.given) and sel.count(job.given) > 1:
                self._reply(job, ((index, index + 1),), Status.OK, last=not job.todo)
            else:
                job.done.append(index)
            self._continue(job)

    def _failed(self, job: Job, index: int, status: Status) -> None:
        job.todo.pop(0)
        if self.function.capacity > 1 and sel.count(job.given) > 1:
            self._reply(job, ((index, index + 1),), status, last=not job.todo)
        else:
            job.failed.append((index, status))
        self._continue(job)

    def _continue(self, job: Job) -> None:
        job.step += 1
        if job.todo:
            self._next(job)
        elif job.done or job.failed:
            self._reply_all(job)

    def _reply_all(self, job: Job) -> None:
        """One frame for what went well, one for each failure."""
        replies = [(sel.from_indices(job.done), Status.DONE if job.stream else Status.OK)] if job.done else []
        replies += [(((index, index + 1),), status) for index, status in job.failed]
        for position, (indices, status) in enumerate(replies):
            self._reply(job, indices, status, last=position == len(replies) - 1)

    def _reply(self, job: Job, indices: Selection, status: Status, *, last: bool) -> None:
        for index in sel.indices(indices):
            made = self._input(job, index)
            made.held_by = None if made.held_by == self.name else made.held_by
        whole = indices == job.given
        self.tell("result", job.lease, None if whole else indices, status, last, ends=job if last else None)
