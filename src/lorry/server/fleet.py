"""All containers of this machine: start, connect, watch, stop, adopt after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorry import errors, faults
from lorry.clock import Clock
from lorry.ids import call_name, new_id
from lorry.lifecycle.container import ContainerEvent, ContainerState
from lorry.model.function import FunctionSpec
from lorry.model.records import ContainerRecord, DecisionRecord, Status
from lorry.sandbox.interface import Exit, Sandbox, SandboxSpec
from lorry.scheduler.inventory import Reservation
from lorry.scheduler.place import Placed
from lorry.server.adopted import container_of, note, work_of
from lorry.server.container import Container, children_of, death_text
from lorry.server.logs import LogStore, OutputPump
from lorry.server.memory_growth import MemoryGrowth
from lorry.server.peers import Peer
from lorry.server.switch import Switch
from lorry.server.templates import Abandoned, Templates, remove_folder
from lorry.store.interface import Store
from lorry.timeouts import EXIT_HOOKS, LOG_DRAIN, RECONNECT
from lorry.wire.codec import to_plain
from lorry.wire.control import encode
from lorry.wire.frames import Kind

COLD_START = "cold start"
"""Kind of the decision row that holds a container's stages as JSON."""
MAX_BOOT_DEATHS = 3
"""Containers of a function that may die while booting, one after the other, before its inputs are given up."""
TIMED_OUT = 124
"""Exit code of a sandbox, or of a program in it, whose `timeout` was over; as that of timeout(1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the fleet is built on; see `wiring`."""

    clock: Clock
    store: Store
    switch: Switch
    logs: LogStore
    sandbox: Sandbox
    folder: Path
    """Parent of the containers' own folders."""
    notes: Path
    """Of containers whose row is not committed; see `note`."""
    templates: Templates
    prepare: Callable[[Container], Awaitable[SandboxSpec]]
    """Everything a container needs brought to this machine, and its sandbox described."""
    machine_mib: int
    """Memory of this machine: `memory_backoff` ends there."""
    hidden: Callable[[Container], tuple[str, ...]]
    """Values that must not appear in the output of a container which an earlier worker started."""


class Fleet:
    def __init__(self, services: Services) -> None:
        self._s = services
        self._loop = asyncio.get_running_loop()
        self.containers: dict[str, Container] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._boot_deaths: dict[int, int] = {}
        self.failed_starts: dict[int, tuple[int, float]] = {}
        """By function: how many in a row, and when the last was."""
        self.peaks: dict[int, int] = {}
        self.memory = MemoryGrowth(services.machine_mib)
        self.changed: Callable[[int], None] = lambda _target: None
        self.on_freed: Callable[[], None] = lambda: None
        services.folder.mkdir(parents=True, exist_ok=True)
        services.notes.mkdir(mode=0o700, exist_ok=True)

    # What the switch needs

    def peer_of(self, container: str) -> Peer | None:
        found = self.containers.get(container)
        return found.peer if found else None

    def working_on(self, container: str, call: bytes) -> Peer | None:
        found = self.containers.get(container)
        if found is None:
            return None
        found.current_call = call if found.spec.max_concurrent == 1 else None
        return found.peer

    def nudge(self, container: str) -> None:
        found = self.containers.get(container)
        if found is not None:
            found.nudge()

    def kill(self, container: str, reason: str, *, guilty: bool = False) -> None:
        """Now, without asking. Its inputs run again off their budget, unless it is `guilty`: then what it worked on did
        that, and would do it again for ever."""
        found = self.containers.get(container)
        if found is not None and found.process is not None:
            found.reason = found.reason or reason
            found.charge, found.guilty = guilty, guilty
            found.process.kill()

    def retire(self, container: str, reason: str) -> None:
        """Finish what it has, then stop."""
        found = self.containers.get(container)
        if found is None or not found.machine.allows(ContainerEvent.DRAIN):
            return
        found.reason = found.reason or reason
        found.machine.fire(ContainerEvent.DRAIN, self._s.clock.monotonic())
        if self._s.switch.dispatcher.drain(container):
            self.stop(container, reason)

    # Start

    def start(
        self,
        app_id: str,
        target: int,
        spec: FunctionSpec,
        placed: Placed,
        reason: str,
        container_id: str | None = None,
        waited: float = 0.0,
    ) -> str:
        """Reserve and start one container; returns its id at once, everything else happens behind."""
        container_id = container_id or new_id("ct")
        container = Container(
            container_id=container_id,
            app_id=app_id,
            target=target,
            spec=spec,
            token=secrets.token_hex(32),
            folder=self._s.folder / container_id,
            reservation=placed.reserved_for(container_id),
            gpu_model=placed.gpu_model,
            started=self._s.clock.monotonic(),
            started_wall=self._s.clock.wall(),
        )
        container.stages.seconds["queue"] = waited
        self.containers[container_id] = container
        self._decide(container_id, "start", reason)
        self._announce(container)
        self._spawn(self._launch(container))
        return container_id

    def warm(self, app_id: str, target: int) -> None:
        """Make the template of a function ahead of its first call."""
        self._spawn(self._warm(app_id, target))

    async def _warm(self, app_id: str, target: int) -> None:
        container_id = new_id("ct")
        nothing = Reservation(container_id=container_id, cores=0.0, memory_mib=0)
        example = Container(
            container_id=container_id,
            app_id=app_id,
            target=target,
            spec=self._s.switch.spec(target),
            token="",
            folder=self._s.folder / container_id,
            reservation=nothing,
            gpu_model="",
            started=self._s.clock.monotonic(),
            started_wall=self._s.clock.wall(),
        )
        with contextlib.suppress(errors.Error, OSError):  # whatever it is, the first call will say so
            example.folder.mkdir(mode=0o700)
            self._s.templates.warm(example, await self._s.prepare(example))
        await asyncio.to_thread(remove_folder, example.folder)

    async def _launch(self, container: Container) -> None:
        now = self._s.clock.monotonic
        try:
            container.folder.mkdir(mode=0o700)
            described = container.described = await self._s.prepare(container)
            container.stages.end("image", now())
            if container.spec.is_sandbox:
                container.process = await self._s.sandbox.start(described)
            else:
                container.process = await self._s.templates.start(container, described)
        except Abandoned:
            container.machine.fire(ContainerEvent.START_FAILED, now())
            await self._bury(container)
            return
        except Exception as problem:
            container.machine.fire(ContainerEvent.START_FAILED, now())
            message = problem if isinstance(problem, errors.Error) else f"{type(problem).__name__}: {problem}"
            self._start_failed(container, f"{type(problem).__name__}: {message}")
            await self._bury(container)
            return
        if container.machine.allows(ContainerEvent.SPAWNED):  # not if it was quicker than we: see `ready`
            container.machine.fire(ContainerEvent.SPAWNED, now())
        note(self._s.notes, container.record())
        if not container.process.forked:
            container.stages.end("sandbox", now())
        container.pump = OutputPump(self._loop, container.process.outputs, self._output_sink(container))
        self._spawn(self._watch(container))
        if container.spec.is_sandbox:
            self._sandbox_runs(container)
        self._watch_boot(container)
        if container.state is ContainerState.STOPPING:  # stopped while it was being started
            container.process.kill()
        await self._store_row(container)

    async def _store_row(self, container: Container) -> None:
        """Then its note has done its duty."""
        if faults.armed:
            faults.point("worker.before_container_row")
        with contextlib.suppress(errors.StorageFullError):
            await self._s.store.put_container(container.record())
            (self._s.notes / container.container_id).unlink(missing_ok=True)

    def _start_failed(self, container: Container, text: str) -> None:
        """Its inputs cannot run: they end with this text."""
        self._count_failure(container.target)
        container.reason = text
        self._decide(container.container_id, "start failed", text)
        if container.spec.is_sandbox:
            return
        self._s.switch.perform(self._s.switch.dispatcher.fail_waiting(container.target, Status.PLATFORM, text))

    def _count_failure(self, target: int) -> None:
        count, _ = self.failed_starts.get(target, (0, 0.0))
        self.failed_starts[target] = (count + 1, self._s.clock.monotonic())

    def _watch_boot(self, container: Container) -> None:
        self._loop.call_later(container.spec.effective_startup_timeout, self._boot_overdue, container)

    def _boot_overdue(self, container: Container) -> None:
        if container.state is not ContainerState.BOOTING:
            return
        limit = container.spec.effective_startup_timeout
        text = (
            f"FunctionTimeoutError: importing the code and running @enter took longer than {limit:g} s "
            "(startup_timeout, by default the function's timeout)"
        )
        container.machine.fire(ContainerEvent.BOOT_FAILED, self._s.clock.monotonic())
        container.reason = text
        self._count_failure(container.target)
        self._s.switch.perform(self._s.switch.dispatcher.fail_waiting(container.target, Status.TIMEOUT, text))
        self.kill(container.container_id, text)

    # Connections

    def hello(self, peer: Peer, parameters: dict[str, Any]) -> dict[str, Any]:
        """A container says who it is. Raises InvalidError for a wrong id or token."""
        container = self.identify(parameters)
        if container.peer is not None:
            container.peer.close()
        container.peer = peer
        container.runner_pid = peer.pid
        peer.identity = container
        container.stages.end("process" if container.process else "sandbox", self._s.clock.monotonic())
        self._s.templates.arrived(container, peer.pid)
        if container.state is ContainerState.LOST_CONTACT:
            self._adopt(container, parameters.get("running", []), bool(parameters.get("booted", True)))
        return {"spec": to_plain(container.spec)}

    def identify(self, parameters: dict[str, Any]) -> Container:
        """The container whose id and token these are. InvalidError if there is none."""
        container = self.containers.get(str(parameters.get("container_id", "")))
        token = str(parameters.get("token", "")).encode(errors="replace")
        if container is None or not hmac.compare_digest(container.token.encode(), token):
            raise errors.InvalidError("no such container, or a wrong token")
        return container

    def ready(self, container: Container, told: dict[str, Any] | None = None) -> None:
        """Imports and enter hooks are done. `told`: how long they took."""
        self._up(container)
        container.boot(told or {})
        container.ready_at = container.stages.mark = self._s.clock.monotonic()
        if container.state is not ContainerState.BOOTING:
            return
        now = self._s.clock.monotonic()
        container.machine.fire(ContainerEvent.BOOTED, now)
        self._boot_deaths.pop(container.target, None)
        self.failed_starts.pop(container.target, None)
        spec = container.spec
        left = 1 if spec.single_use else spec.max_inputs
        self._announce(container)
        effects = self._s.switch.dispatcher.ready(
            container.container_id, container.target, spec.max_concurrent, now, left
        )
        self._s.switch.perform(effects)
        self._store_soon(container)
        self.changed(container.target)

    def first_result(self, container: Container) -> None:
        """The start is over, and kept for `lorry app coldstarts`."""
        container.stages.end("first input", self._s.clock.monotonic())
        container.ready_at = None
        self._decide(container.container_id, COLD_START, container.cold_start().to_json())

    def boot_failed(self, container: Container, failure: str) -> None:
        """The user's module or an enter hook raised: reported once to everything that waits."""
        self._up(container)
        if container.state is not ContainerState.BOOTING:
            return
        container.machine.fire(ContainerEvent.BOOT_FAILED, self._s.clock.monotonic())
        container.reason = "its import or @enter raised"
        self._count_failure(container.target)
        self._s.switch.perform(self._s.switch.dispatcher.fail_waiting(container.target, Status.ERROR, failure))

    def _up(self, container: Container) -> None:
        """It speaks before the launcher has said that it is there."""
        if container.state is ContainerState.STARTING:
            container.machine.fire(ContainerEvent.SPAWNED, self._s.clock.monotonic())

    def disconnected(self, container: Container, peer: Peer) -> None:
        """Its socket closed. It is dead or will be in a moment; the exit decides."""
        if container.peer is peer:
            container.peer = None

    # Output

    def _output_sink(self, container: Container) -> Callable[[int, str | None, list[str]], None]:
        def sink(stream: int, call: str | None, lines: list[str]) -> None:
            current = call_name(container.current_call) if container.current_call else ""
            owner = call if call is not None else current
            self._s.logs.append(container.app_id, container.container_id, owner, stream, container.redacted(lines))

        return sink

    # Stop and end

    def stop(self, container_id: str, reason: str, *, within: float = EXIT_HOOKS) -> None:
        """Ask it to run its exit hooks and end; it is killed `within` seconds later."""
        container = self.containers.get(container_id)
        if container is None or not container.machine.allows(ContainerEvent.STOP):
            return
        container.machine.fire(ContainerEvent.STOP, self._s.clock.monotonic())
        container.reason = container.reason or reason
        idle = self._s.switch.dispatcher.drain(container_id)
        self._decide(container_id, "stop", reason)
        if container.process is None:
            container.abandoned.set()
            return  # `_launch` kills it as soon as it is there
        if container.peer is None or not idle:
            container.process.kill()
            return
        for frame in encode(Kind.REQUEST, 0, {"method": "stop"}):
            container.peer.send(frame)
        self._loop.call_later(within, container.process.kill)

    async def _watch(self, container: Container) -> None:
        assert container.process is not None
        ended = await container.process.wait()
        container.peak_memory = max(container.peak_memory, ended.peak_memory)
        await self._drain_output(container)
        try:
            self._ended(container, ended)
        finally:  # whatever went wrong there: a dead container must not keep its reservation
            await self._bury(container)

    async def _drain_output(self, container: Container) -> None:
        """Read the last output. A process that left its sandbox's life may hold a pipe open: not for ever."""
        assert container.pump is not None
        await asyncio.wait([container.pump.ended], timeout=LOG_DRAIN)
        if not container.pump.ended.done():
            container.pump.stop()

    def _ended(self, container: Container, ended: Exit) -> None:
        now = self._s.clock.monotonic()
        booting = container.state is ContainerState.BOOTING
        container.machine.fire(ContainerEvent.EXITED, now)
        if container.spec.is_sandbox:
            self._sandbox_ended(container, ended)
            return
        if container.peer is not None:
            container.peer.read_rest()  # results that it sent before it died count
            container.peer.close()
        self.peaks[container.target] = max(self.peaks.get(container.target, 0), container.peak_memory)
        ended = replace(ended, oom_killed=ended.oom_killed or container.over_memory)
        sentence = container.reason or container.scratch_text or ended.describe()
        limit = container.spec.resources.memory_limit
        memory = ended.oom_killed and limit is not None
        grown = memory and not container.reason and self._outgrown(container)
        story = self.memory.story(self._declared(container), limit) if memory and limit else ""
        text = death_text(container, ended, sentence, story)
        if booting and not grown:
            self._died_booting(container, text)
        charge = container.guilty or (container.charge and not container.reason and not grown)
        own_limit = memory or container.scratch > 0
        effects = self._s.switch.dispatcher.lost(container.container_id, text, now, charge=charge, own_limit=own_limit)
        self._s.switch.perform(effects)
        container.reason = sentence

    def _outgrown(self, container: Container) -> bool:
        """It passed its memory limit. True if its inputs run again with more; smaller containers go then."""
        target, limit = container.target, container.spec.resources.memory_limit
        if limit is None or self.memory.is_small(target, limit):
            return limit is not None
        sentence = self.memory.passed(target, self._declared(container), limit)
        if sentence is None:
            return False
        self._decide(container.container_id, "more memory", sentence)
        self._output_sink(container)(2, None, [f"lorry: {sentence}"])
        for other in [c for c in self.containers.values() if c.target == target and c is not container]:
            self.retire(other.container_id, sentence)
        return True

    def _declared(self, container: Container) -> FunctionSpec:
        """Its function's own spec: the container's may have more memory."""
        try:
            return self._s.switch.spec(container.target)
        except errors.NotFoundError:  # its app is stopped
            return container.spec

    def _died_booting(self, container: Container, text: str) -> None:
        """Nobody told it to: a crash in an import, or out of memory. Tried again a few times."""
        count = self._boot_deaths.get(container.target, 0) + 1
        self._boot_deaths[container.target] = count
        self._count_failure(container.target)
        if count >= MAX_BOOT_DEATHS:
            self._boot_deaths.pop(container.target)
            self._s.switch.perform(
                self._s.switch.dispatcher.fail_waiting(
                    container.target, Status.LOST, f"{text}. It died {count} times while importing or in @enter"
                )
            )

    async def _bury(self, container: Container) -> None:
        """Accounting, and nothing left on disk."""
        wall = self._s.clock.wall()
        self._decide(container.container_id, "end", container.reason or "it ended")
        usage = self._s.store.add_usage(container.usage(wall))
        gone = asyncio.ensure_future(self._s.store.put_container(container.record(stopped_at=wall)))
        if container.spec.is_sandbox:
            await _quietly(asyncio.shield(gone))  # its row answers for it from now on
        self.containers.pop(container.container_id, None)
        container.gone.set()
        container.up.set()
        self._announce(container)
        self.changed(container.target)
        self.on_freed()
        with contextlib.suppress(errors.StorageFullError):
            await asyncio.gather(usage, gone)
        if container.process is not None:
            container.process.close()
        await asyncio.to_thread(remove_folder, container.folder)

    # Sandboxes: containers whose program is the user's own, and that take no inputs

    def _sandbox_runs(self, container: Container) -> None:
        """Its program is executed: it needs no boot, and ends by itself, or by its `timeout`."""
        if container.machine.allows(ContainerEvent.BOOTED):
            container.machine.fire(ContainerEvent.BOOTED, self._s.clock.monotonic())
        container.up.set()
        left = container.started_wall + container.spec.timeout - self._s.clock.wall()
        self._loop.call_later(max(0.0, left), self._sandbox_overdue, container)

    def _sandbox_overdue(self, container: Container) -> None:
        if container.alive and container.code is None and container.process is not None:
            container.code = TIMED_OUT
            self.kill(container.container_id, f"it ran longer than its timeout of {container.spec.timeout:g} s")

    def _sandbox_ended(self, container: Container, ended: Exit) -> None:
        container.code = ended.code if container.code is None else container.code
        container.reason = container.reason or container.scratch_text or ended.describe()

    # After a restart of the worker

    def recover(self, record: ContainerRecord, spec: FunctionSpec) -> bool:
        """Take over a container of an earlier life, if it is still there. Its inputs wait for it."""
        if not record.pid:  # the worker died before the launcher had told it; this container will be refused
            return False
        folder = self._s.folder / record.container_id
        process = self._s.sandbox.adopt(record.container_id, str(folder), record.pid, record.pid_started)
        if process is None:
            return False
        limit = json.loads(record.resources).get("memory_limit")
        self.memory.adopted(record.function, spec, limit)
        spec = self.memory.restored(spec, limit)
        container = container_of(record, spec, folder, self._s.clock.monotonic())
        now = self._s.clock.monotonic()
        container.machine.fire(ContainerEvent.CONTACT_LOST, now)
        container.process = process
        container.hidden = self._s.hidden(container)
        container.pump = OutputPump(self._loop, process.outputs, self._output_sink(container))
        self.containers[container.container_id] = container
        self._spawn(self._store_row(container))
        if spec.is_sandbox:
            container.machine.fire(ContainerEvent.ADOPTED_BOOTING, now)
            self._spawn(self._watch(container))
            self._sandbox_runs(container)
            return True
        self._s.switch.dispatcher.expect(container.target, container.container_id)
        self._spawn(self._watch(container))
        children = [] if process.forked else children_of(process.pid)
        container.runner_pid = children[0] if children else process.pid
        container.nudge()
        self._loop.call_later(RECONNECT, self._give_up, container)
        return True

    def _give_up(self, container: Container) -> None:
        if container.state is ContainerState.LOST_CONTACT:
            container.machine.fire(ContainerEvent.GIVEN_UP, self._s.clock.monotonic())
            self.kill(container.container_id, f"it did not reconnect within {RECONNECT:g} s of the server's restart")

    def _adopt(self, container: Container, running: list[dict[str, Any]], booted: bool) -> None:
        now = self._s.clock.monotonic()
        if not booted:
            container.machine.fire(ContainerEvent.ADOPTED_BOOTING, now)
            self._watch_boot(container)  # the whole time once more: nobody knows how much of it is over
            # It has no inputs yet: those that were held back for it need not wait for its boot.
            self._s.switch.perform(self._s.switch.dispatcher.lost(container.container_id, "", now))
            self.changed(container.target)
            return
        container.machine.fire(ContainerEvent.ADOPTED_READY, now)
        works = [(int(item["lease"]), work_of(self._s.store, container.target, item)) for item in running]
        # How many inputs it has had is not known any more: it takes no new ones rather than too many.
        limited = container.spec.single_use or container.spec.max_inputs is not None
        effects = self._s.switch.dispatcher.adopt(
            container.container_id,
            container.target,
            container.spec.max_concurrent,
            works,
            now,
            0 if limited else None,
        )
        self._s.switch.perform(effects)
        self.changed(container.target)

    def forget_function(self, target: int) -> None:
        """Its app is stopped and none of its containers is left."""
        for table in (self._boot_deaths, self.failed_starts, self.peaks):
            table.pop(target, None)
        self.memory.forget(target)

    # Small things

    def _decide(self, subject: str, kind: str, reason: str) -> None:
        record = DecisionRecord(at=self._s.clock.wall(), subject=subject, kind=kind, reason=reason)
        self._spawn(_quietly(self._s.store.add_decisions([record])))

    def _store_soon(self, container: Container) -> None:
        self._spawn(_quietly(self._s.store.put_container(container.record())))

    def _announce(self, container: Container) -> None:
        """Followers of the app learn how many containers there are."""
        alive = [c for c in self.containers.values() if c.app_id == container.app_id and c.alive]
        ready = sum(c.state in (ContainerState.READY, ContainerState.DRAINING) for c in alive)
        peak = max((c.peak_memory for c in [*alive, container]), default=0)
        self._s.logs.announce(container.app_id, {"containers": [ready, len(alive)], "peak": peak})

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def reservations(self) -> list[Reservation]:
        return [container.reservation for container in self.containers.values() if container.alive]

    async def settle(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _quietly(write: Awaitable[Any]) -> None:
    """A row that explains: losing it on a full disk must not stop work."""
    with contextlib.suppress(errors.StorageFullError):
        await write
