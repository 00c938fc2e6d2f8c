"""All containers of this machine: start, connect, watch, stop, adopt after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from lorry import errors, faults
from lorry.ids import call_name, new_id
from lorry.lifecycle.container import ContainerEvent, ContainerState
from lorry.model.function import FunctionSpec
from lorry.model.records import ContainerRecord, DecisionRecord
from lorry.sandbox.interface import Exit
from lorry.scheduler.inventory import Reservation
from lorry.scheduler.place import Placed
from lorry.server.adopted import container_of, note, work_of
from lorry.server.boots import Boots
from lorry.server.container import Container, children_of, death_text
from lorry.server.logs import OutputPump
from lorry.server.memory_growth import MemoryGrowth
from lorry.server.peers import Peer
from lorry.server.services import Services
from lorry.server.templates import Abandoned
from lorry.server.user_sandboxes import UserSandboxes
from lorry.server.warming import Warming
from lorry.timeouts import EXIT_HOOKS, RECONNECT
from lorry.wire.codec import to_plain
from lorry.wire.control import encode
from lorry.wire.frames import Kind

COLD_START = "cold start"
"""Kind of the decision row that holds a container's stages as JSON."""


class Fleet:
    def __init__(self, services: Services) -> None:
        self._s = services
        self._loop = asyncio.get_running_loop()
        self.containers: dict[str, Container] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._boots = Boots(services.clock, services.switch, self.kill)
        self._sandboxes = UserSandboxes(services.clock, self.kill)
        self._warming = Warming(services, self._booting)
        self.peaks: dict[int, int] = {}
        self.memory = MemoryGrowth(services.machine_mib)
        self.changed: Callable[[int], None] = lambda _target: None
        self.on_freed: Callable[[], None] = lambda: None
        self.adopted: Callable[[str], None] = lambda _container: None
        """A container of an earlier life of the server is back, with its inputs."""
        services.folder.mkdir(parents=True, exist_ok=True)
        services.notes.mkdir(mode=0o700, exist_ok=True)

    @property
    def failed_starts(self) -> dict[int, tuple[int, float]]:
        """By function: how many in a row, and when the last was."""
        return self._boots.failures

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
        """Make the template of a function ahead of its first call, when there is time for it."""
        self._warming.add(app_id, target)

    def _booting(self) -> bool:
        """Whether somebody waits for a container."""
        early = (ContainerState.STARTING, ContainerState.BOOTING)
        return any(container.state in early for container in self.containers.values())

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
            self._boots.refused(container, f"{type(problem).__name__}: {message}")
            self._decide(container.container_id, "start failed", container.reason)
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
            self._sandboxes.runs(container)
        else:
            self._boots.watch(container)
        if container.state is ContainerState.STOPPING:  # stopped while it was being started
            container.process.kill()
        await self._store_row(container)

    async def _store_row(self, container: Container) -> None:
        """Then its note has done its duty."""
        if faults.armed:
            faults.point("worker.before_container_row")
        with contextlib.suppress(errors.ResourceError):
            await self._s.store.put_container(container.record())
            (self._s.notes / container.container_id).unlink(missing_ok=True)

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
        self._boots.succeeded(container.target)
        spec = container.spec
        left = 1 if spec.single_use or spec.resumable else spec.max_inputs
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
        self._boots.raised(container, failure)

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
        """Ask it to run its exit hooks and end; it is killed `within` seconds later. One that works is killed at once,
        unless that is a run: it has its grace to save."""
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
        peer, process, resumable = container.peer, container.process, container.spec.resumable
        if peer is None or not (idle or resumable):
            process.kill()
            return
        if not idle and resumable is not None:  # once it has saved and answered, it is told to stop
            self._s.switch.dispatcher.excuse(container_id)
            within = resumable.grace
        for frame in encode(Kind.REQUEST, 0, {"method": "stop" if idle else "yield"}):
            peer.send(frame)
        if not idle:
            container.nudge()
        container.timers.append(self._loop.call_later(within, process.kill))

    async def _watch(self, container: Container) -> None:
        assert container.process is not None
        ended = await container.process.wait()
        container.peak_memory = max(container.peak_memory, ended.peak_memory)
        assert container.pump is not None
        await container.pump.finish()
        try:
            self._ended(container, ended)
        finally:  # whatever went wrong there: a dead container must not keep its reservation
            await self._bury(container)

    def _ended(self, container: Container, ended: Exit) -> None:
        now = self._s.clock.monotonic()
        booting = container.state is ContainerState.BOOTING
        container.machine.fire(ContainerEvent.EXITED, now)
        if container.spec.is_sandbox:
            self._sandboxes.ended(container, ended)
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
            self._boots.died(container, text)
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

    async def _bury(self, container: Container) -> None:
        """Accounting, and nothing left on disk."""
        wall = self._s.clock.wall()
        self._decide(container.container_id, "end", container.reason or "it ended")
        usage = self._s.store.add_usage(container.usage(wall))
        gone = asyncio.ensure_future(self._s.store.put_container(container.record(stopped_at=wall)))
        if container.spec.is_sandbox:
            await _quietly(asyncio.shield(gone))  # its row answers for it from now on
        self.containers.pop(container.container_id, None)
        for timer in container.timers:
            timer.cancel()
        container.gone.set()
        container.up.set()
        self._announce(container)
        self.on_freed()  # first: whoever waited for its place is before its own function
        self.changed(container.target)
        with contextlib.suppress(errors.ResourceError):
            await asyncio.gather(usage, gone)
        if container.process is not None:
            container.process.close()
        await self._s.templates.remove(container.folder)

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
            self._spawn(self._watch(container))
            self._sandboxes.adopted(container)
            return True
        self._s.switch.dispatcher.expect(container.target, container.container_id)
        self._spawn(self._watch(container))
        children = [] if process.forked else children_of(process.pid)
        container.runner_pid = children[0] if children else process.pid
        container.nudge()
        container.timers.append(self._loop.call_later(RECONNECT, self._give_up, container))
        return True

    def _give_up(self, container: Container) -> None:
        if container.state is ContainerState.LOST_CONTACT:
            container.machine.fire(ContainerEvent.GIVEN_UP, self._s.clock.monotonic())
            self.kill(container.container_id, f"it did not reconnect within {RECONNECT:g} s of the server's restart")

    def _adopt(self, container: Container, running: list[dict[str, Any]], booted: bool) -> None:
        now = self._s.clock.monotonic()
        if not booted:
            container.machine.fire(ContainerEvent.ADOPTED_BOOTING, now)
            self._boots.watch(container)  # the whole time once more: nobody knows how much of it is over
            # It has no inputs yet: those that were held back for it need not wait for its boot.
            self._s.switch.perform(self._s.switch.dispatcher.lost(container.container_id, "", now))
            self.changed(container.target)
            return
        container.machine.fire(ContainerEvent.ADOPTED_READY, now)
        works = [(int(item["lease"]), work_of(self._s.store, container.target, item)) for item in running]
        # How many inputs it has had is not known any more: it takes no new ones rather than too many.
        spec = container.spec
        limited = spec.single_use or spec.resumable is not None or spec.max_inputs is not None
        effects = self._s.switch.dispatcher.adopt(
            container.container_id,
            container.target,
            container.spec.max_concurrent,
            works,
            now,
            0 if limited else None,
        )
        self._s.switch.perform(effects)
        self.adopted(container.container_id)
        self.changed(container.target)

    def forget_function(self, target: int) -> None:
        """Its app is stopped and none of its containers is left."""
        self._boots.forget(target)
        self.peaks.pop(target, None)
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

    def halt(self) -> None:
        """No more templates ahead of calls: the server ends."""
        self._warming.stop()

    async def settle(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _quietly(write: Awaitable[Any]) -> None:
    """A row that explains: losing it on a full disk must not stop work."""
    with contextlib.suppress(errors.ResourceError):
        await write
