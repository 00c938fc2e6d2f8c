"""A deterministic world around the pure core: clients, disk, containers and a server that may die at any step.

    python -m lorry.testing.simulator --seed N     tell the story of one seed
    python -m lorry.testing.simulator --seeds 10000

Everything is drawn from one `random.Random(seed)`; no clock is read. A broken promise raises `Broken` with the
last events. Promises 1 and 2 of the design, capacities, limits and starvation are checked at each step (`Facts`,
`audit`) and at the end.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import heapq
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from lorry.model.function import ResumePolicy, RetryPolicy, Scaling
from lorry.model.records import Status
from lorry.scheduler.dispatch import Work
from lorry.testing.simulated_audit import audit, audit_empty
from lorry.testing.simulated_container import Container
from lorry.testing.simulated_facts import ALWAYS, Broken, Chunk, Disk, Facts, Function, Input, name
from lorry.testing.simulated_server import Server

ALL_HAVE_COME = 9.0
"""Simulated seconds after which no client comes any more."""
CHAOS_ENDS = 25.0
PATIENCE = 4000.0
"""Simulated seconds after which whoever still waits is starved."""
AUDIT_EVERY = 12
MAX_EVENTS = 60_000


class _Crash(Exception):
    """The server dies here."""


class World:
    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)  # noqa: S311
        self.now = 0.0
        self.life = 0
        self.steps = 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self.story: list[tuple[float, str, tuple[Any, ...]]] = []
        self.facts = Facts()
        self.disk = Disk()
        self.containers: dict[str, Container] = {}
        self.waiting: dict[bytes, Input] = {}
        """Synchronous calls without an answer."""
        self._asked: dict[bytes, int] = {}
        self.cores = rng.choice((1, 2, 4))
        trouble = rng.choice((0.0, 0.3, 1.0))
        self._odds = {"duplicate": 0.05 * trouble, "late": 0.15 * trouble}
        self.functions = [self._function(target) for target in range(1, rng.choice((2, 2, 3)))]
        self._crash_in = 0
        self.server: Server | None = Server(self)
        self._populate(trouble)

    # The world's making

    def _function(self, target: int) -> Function:
        rng = self.rng
        if rng.random() < 0.3:
            return self._resumable(target)
        retries = rng.choice((0, 0, 1, 2))
        return Function(
            target=target,
            policy=RetryPolicy(max_retries=retries, initial_delay=rng.choice((0.0, 0.5)), backoff_coefficient=2.0),
            timeout=rng.choice((3.0, 8.0)),
            capacity=rng.choice((1, 1, 2, 3)),
            max_inputs=rng.choice((None, None, None, 1, 3)),
            scaling=Scaling(max_containers=rng.choice((None, 1, 2, 3)), scaledown_window=rng.choice((2.0, 20.0))),
            bad_starts=rng.choice((0,) * 9 + (1, 3)),
        )

    def _resumable(self, target: int) -> Function:
        rng = self.rng
        return Function(
            target=target,
            policy=RetryPolicy(),
            timeout=rng.choice((3.0, 8.0)),
            capacity=1,
            max_inputs=1,
            scaling=Scaling(max_containers=rng.choice((None, 1, 3)), scaledown_window=2.0),
            bad_starts=0,
            resumable=ResumePolicy(grace=rng.choice((0.5, 2.0, 8.0))),
        )

    def _populate(self, trouble: float) -> None:
        rng = self.rng
        for number in range(rng.randint(2, 7)):
            kind = rng.choice(("call", "call", "stream", "spawn", "map", "map"))
            self.at(rng.random() * 8.0, getattr(self, f"_client_{kind}"), number.to_bytes(16, "big"))
        if trouble:
            for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
                self.at(rng.random() * CHAOS_ENDS, self._plan_crash)
            for _ in range(rng.randint(0, 3)):
                self.at(rng.random() * CHAOS_ENDS, self._disturb)

    def _input(self, function: Function) -> Input:
        rng = self.rng
        made = Input(function=function, seconds=rng.choice((0.01, 0.1, 0.5, 2.0)))
        fate = rng.random()
        if fate < 0.12:
            made.fails = rng.choice((1, 1, 2, ALWAYS))
        elif fate < 0.20:
            made.hangs, made.stubborn = rng.choice((1, 1, ALWAYS)), rng.random() < 0.5
        elif fate < 0.28:
            made.kills = rng.choice((1, 1, 3, ALWAYS))
        elif fate < 0.31:
            made.kills, made.fails, made.hangs = 1, 1, 1
        if function.resumable is not None:
            made.commits = rng.choice((0, 0, 1, 4, 8))
            made.slices = rng.choice((0, 1, 3, 6, ALWAYS))
        return made

    # Clients

    def _client_call(self, call: bytes, *, stream: bool = False) -> None:
        plain = [function for function in self.functions if function.resumable is None]
        if not plain:
            self._client_spawn(call)
            return
        made = self._input(self.rng.choice(plain))
        made.acknowledged = True
        if stream:
            made.stream = True
            made.yields = self.rng.randint(0, 4)
            made.seconds = min(made.seconds, 0.5)
        self.facts.add((call, 0, 0), made)
        self.waiting[call] = made
        self._ask(call, stream, False)
        if stream and self.rng.random() < 0.2:
            self.after(self.rng.random() * 3.0, self._abandon, call)

    def _client_stream(self, call: bytes) -> None:
        self._client_call(call, stream=True)

    def _ask(self, call: bytes, stream: bool, again: bool) -> None:
        if call not in self.waiting:
            return
        if self.server is None:
            self.after(0.1, self._ask, call, stream, True)
            return
        if self._asked.get(call) == self.life:
            return  # once on each connection
        self._asked[call] = self.life
        target = self.waiting[call].function.target
        self.note("asks", call[-1], again)
        self.server.call(Work(call=call, target=target, stream=stream, again=again))

    def _abandon(self, call: bytes) -> None:
        """The reader of a generator goes away."""
        made = self.waiting.get(call)
        if made is not None and self.server is not None:
            made.cancelled = True
            self._give_up(call)
            self.server.clients.discard(call)
            self.server.cancel(call, journaled=False)

    def _give_up(self, call: bytes) -> None:
        del self.waiting[call]
        self.facts.settle((call, 0, 0), Status.CANCELLED)

    def answer(self, life: int, call: bytes, status: Status) -> None:
        """A result reaches the client, unless the server died with it on its way."""
        if self.life == life and self.server is not None:
            if call not in self.waiting and self.facts.inputs[call, 0, 0].cancelled:
                return  # its reader went away at the same moment
            if call not in self.waiting:
                raise Broken(f"call {call[-1]} was answered twice")
            del self.waiting[call]
            self.facts.settle((call, 0, 0), status)

    def _client_spawn(self, call: bytes) -> None:
        self._send_chunk(self._chunk(call, 0, self.rng.choice(self.functions), 1, batch=False), False)
        self._maybe_cancel(call)

    def _client_map(self, call: bytes) -> None:
        function = self.rng.choice(self.functions)
        for number in range(self.rng.randint(1, 3)):
            size = 1 if function.resumable is not None else self.rng.choice((1, 2, 5, 9))
            chunk = self._chunk(call, number, function, size, batch=True)
            self.after(self.rng.random(), self._send_chunk, chunk, False)
        self._maybe_cancel(call)

    def _chunk(self, call: bytes, number: int, function: Function, size: int, *, batch: bool) -> Chunk:
        for index in range(size):
            self.facts.add((call, number, index), self._input(function))
        return Chunk(call=call, number=number, function=function, size=size, batch=batch)

    def _send_chunk(self, chunk: Chunk, again: bool) -> None:
        """Until it is acknowledged."""
        places = [(chunk.call, chunk.number, index) for index in range(chunk.size)]
        first = self.facts.inputs[places[0]]
        if first.acknowledged:
            return
        if chunk.call in self.disk.cancelled:
            for place in places:
                if self.facts.inputs[place].outcome is None:
                    self.facts.settle(place, Status.CANCELLED)
            return
        if self.server is not None:
            self.server.accept(chunk, again)
        self.after(1.0, self._send_chunk, chunk, True)

    def acknowledge(self, chunk: Chunk) -> None:
        for index in range(chunk.size):
            self.facts.inputs[chunk.call, chunk.number, index].acknowledged = True

    def _maybe_cancel(self, call: bytes) -> None:
        if self.rng.random() < 0.12:
            self.after(self.rng.random() * 12.0, self._cancel, call)

    def _cancel(self, call: bytes) -> None:
        if self.server is None:
            self.after(0.3, self._cancel, call)
            return
        for place, made in self.facts.inputs.items():
            if place[0] == call:
                made.cancelled = True
        self.server.cancel(call, journaled=True)

    def settle_cancelled(self, call: bytes) -> None:
        """From now on this is the outcome of what has none."""
        for place, made in self.facts.inputs.items():
            if place[0] == call and made.acknowledged and made.outcome is None:
                self.facts.settle(place, Status.CANCELLED)

    # Containers

    def start_container(self, function: Function) -> Container:
        container = Container(self, f"ct-{len(self.containers)}", function)
        self.containers[container.name] = container
        if function.bad_starts:
            function.bad_starts -= 1
            container.after(self.rng.random(), container.tell, "boot_failed")
            container.after(1.1, container.die, "its import raised")
        else:
            container.after(self.rng.random(), container.booted)
        return container

    def died(self, container: Container) -> None:
        """Its pidfd tells; before or after its last words."""
        self.after(self.rng.random() * 0.4, self._exited, container)

    def _exited(self, container: Container) -> None:
        if self.server is not None:
            self.server.exited(container)
        else:
            self.disk.containers.discard(container.name)

    def to_server(self, container: Container, what: str, args: tuple[Any, ...]) -> None:
        at = max(self.now + self.latency(), container.reachable_at + 1e-6)
        container.reachable_at = at
        self.at(at, self._heard, self.life, container, what, args)

    def _heard(self, life: int, container: Container, what: str, args: tuple[Any, ...]) -> None:
        if self.server is not None and self.life == life:
            self.note("hears", container.name, what, args)
            self.server.hear(container, what, args)

    # Trouble

    def chaos(self, what: str) -> bool:
        return self.now < CHAOS_ENDS and self.rng.random() < self._odds[what]

    def latency(self) -> float:
        return self.rng.random() * 0.01

    def _disturb(self) -> None:
        alive = [container for container in self.containers.values() if container.alive]
        if alive:
            victim = self.rng.choice(alive)
            chance = self.rng.random()
            if chance < 0.4:
                self.note("kills", victim.name)
                victim.die("was killed from outside")
            elif chance < 0.6 and self.server is not None:
                self.note("stops", victim.name)
                self.server.stop_container(victim)
            else:
                seconds = self.rng.choice((0.5, 4.0, 15.0, 80.0))
                self.note("pauses", victim.name, seconds)
                victim.pause(seconds)

    def _plan_crash(self) -> None:
        self._crash_in = self.rng.randint(1, 12)

    def step(self) -> None:
        """A point at which the server may die."""
        self.steps += 1
        if self._crash_in and self.server is not None:
            self._crash_in -= 1
            if not self._crash_in:
                raise _Crash

    def _crash(self) -> None:
        self.note("CRASH")
        self.server = None
        self._crash_in = 0
        for place, made in self.facts.inputs.items():
            made.excuses += made.outcome is None
            if made.life == self.life and made.outcome is None:
                self.note("forgotten", name(place))
        self.life += 1
        for call, made in list(self.waiting.items()):
            if made.stream:
                self._give_up(call)  # a generator is not asked again
            else:
                self.after(self.rng.random() * 4.0, self._ask, call, False, True)
        for container in self.containers.values():
            container.disconnected()
        self.after(self.rng.choice((0.2, 1.0, 5.0)), self._restart)

    def _restart(self) -> None:
        self.note("RESTART")
        self.server = Server(self)
        self.server.recover()

    # Time

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, action, args))

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay, action, *args)

    def note(self, what: str, *args: Any) -> None:
        self.story.append((self.now, what, args))

    def run(self) -> None:
        events = 0
        while not self._over():
            if self.now > PATIENCE or events > MAX_EVENTS:
                raise Broken(f"starved after {events} events: {self._open()}")
            try:
                self._advance()
            except _Crash:
                self._crash()
            events += 1
            if self.server is not None and events % AUDIT_EVERY == 0:
                audit(self.server.dispatcher)
        assert self.server is not None
        audit_empty(self.server.dispatcher)
        self._check_promises()

    def _advance(self) -> None:
        """The next event, or what the server has to do before it."""
        due = self._events[0][0] if self._events else PATIENCE + 1
        server = self.server
        if server is not None:
            wake = min(queue.wake for queue in server.dispatcher.queues.values())
            wake = max(self.now, wake + 0.03)
            if wake < due or server.scale_at < due:
                self.now = max(self.now, min(wake, server.scale_at))
                if wake <= server.scale_at:
                    server.perform(server.dispatcher.tick(self.now))
                    server.scale_at = min(server.scale_at, self.now + 0.1)
                else:
                    server.scale()
                return
        if not self._events:
            raise Broken(f"nothing will happen any more, and these wait: {self._open()}")
        self.step()  # before the event is taken: a crash does not undo what others are about to do
        self.now, _, action, args = heapq.heappop(self._events)
        action(*args)
        if server is not None:
            server.scale_at = min(server.scale_at, self.now + 0.1)

    def _over(self) -> bool:
        if self.facts.unresolved or self.server is None or (self.now < ALL_HAVE_COME and self._events):
            return False
        dispatcher = self.server.dispatcher
        return not (dispatcher.leases or dispatcher._expected or len(dispatcher._register))

    def _open(self) -> list[str]:
        return [name(place) for place, made in self.facts.inputs.items() if made.outcome is None]

    def _check_promises(self) -> None:
        for place, made in self.facts.inputs.items():
            if made.acknowledged and made.outcome is None:
                raise Broken(f"{name(place)} was acknowledged and is lost")
        for (call, number), chunk in self.disk.chunks.items():
            if len(chunk.done) < chunk.size and call not in self.disk.cancelled:
                raise Broken(f"chunk {number} of call {call[-1]} is not finished")


def run_seed(seed: int, *, tell: bool = False) -> World:
    """Raises Broken, with the story, when a promise is not kept."""
    world = World(seed)
    try:
        world.run()
    except Exception as problem:
        raise Broken(f"seed {seed}: {type(problem).__name__}: {problem}\n{story(world)}") from problem
    if tell:
        print(story(world))
    return world


def story(world: World, last: int = 400) -> str:
    lines = [f"{when:9.3f}  {what:8} {' '.join(map(str, args))}" for when, what, args in world.story[-last:]]
    return "\n".join(lines)


def _run_range(seeds: range) -> tuple[int, list[str], dict[str, int]]:
    failures: list[str] = []
    totals: dict[str, int] = {}
    for seed in seeds:
        try:
            world = run_seed(seed)
        except Broken as broken:
            failures.append(str(broken))
            continue
        for status, count in world.facts.outcomes.items():
            totals[status.name] = totals.get(status.name, 0) + count
        totals["continued"] = totals.get("continued", 0) + world.facts.continued
        totals["steps"] = totals.get("steps", 0) + world.steps
        totals["crashes"] = totals.get("crashes", 0) + world.life
    return len(seeds), failures, totals


def run_many(first: int, count: int, processes: int | None = None) -> tuple[float, list[str], dict[str, int]]:
    """(seconds, failures with their stories, counts) of `count` seeds, over all cores."""
    processes = processes or os.cpu_count() or 1
    ranges = [range(first + start, first + min(start + 250, count)) for start in range(0, count, 250)]
    began = time.perf_counter()
    failures: list[str] = []
    totals: dict[str, int] = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        for _, failed, counted in pool.map(_run_range, ranges):
            failures += failed
            for what, number in counted.items():
                totals[what] = totals.get(what, 0) + number
    return time.perf_counter() - began, failures, totals


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lorry.testing.simulator")
    parser.add_argument("--seed", type=int, help="run this one and tell its story")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        run_seed(arguments.seed, tell=True)
        return 0
    seconds, failures, totals = run_many(arguments.first, arguments.seeds)
    for failure in failures[:3]:
        print(failure, file=sys.stderr)
    print(f"{arguments.seeds} seeds, {arguments.seeds / seconds:.0f}/s, {len(failures)} broken; {totals}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
