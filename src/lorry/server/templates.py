"""Templates: one parked process per version of a function, from which its containers are forked.

A function's version is a digest of all that its import can see. Its first container makes the template and waits for
its import; later ones, of later runs too, cost a fork. What cannot be forked starts cold, with the reason kept for
`lorry container list`. A template ends with this worker; the containers that it forked go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorry import errors, faults
from lorry.clock import Clock
from lorry.ids import new_id
from lorry.model.function import FunctionSpec
from lorry.model.image import ImageSpec
from lorry.sandbox.interface import PreparedFork, Sandbox, SandboxProcess, SandboxSpec
from lorry.sandbox.procfs import total_memory_mib
from lorry.server import folders
from lorry.server.boots import too_slow
from lorry.server.container import Container, redacted
from lorry.server.logs import LogStore, OutputPump
from lorry.server.peers import Peer, close_all
from lorry.server.refusals import Refusals
from lorry.server.template_version import digest, fork_request, template_sandbox, with_token
from lorry.timeouts import FORK
from lorry.wire.codec import to_plain
from lorry.wire.control import encode
from lorry.wire.frames import Header, Kind

MEMORY_SHARE = 4
"""Templates may keep a quarter of the machine's memory; then the one that was used longest ago goes first."""
HAS_ENDED = "its template has ended"
END = 1.0
"""Seconds for a template whose connection has ended to end itself: then how it did is known. It takes milliseconds."""


class Unforkable(Exception):
    """Why a container has to start cold."""


class Abandoned(Exception):
    """The container was stopped before it had begun."""


@dataclass(slots=True, eq=False)
class Template:
    key: str
    template_id: str
    token: str
    app_id: str
    spec: FunctionSpec
    folder: Path
    sandbox: SandboxSpec
    hidden: tuple[str, ...]
    """Values of its secrets, blacked out in what its import prints."""
    used: float
    """Monotonic."""
    began: float
    """Monotonic."""
    ready: asyncio.Future[dict[str, Any]]
    """What its import took. Unforkable when there will be none."""
    process: SandboxProcess | None = None
    peer: Peer | None = None
    pump: OutputPump | None = None
    held: list[tuple[int, list[str]]] = field(default_factory=list)
    """Output of the import: shown once that has succeeded; otherwise the cold start repeats it."""
    arriving: dict[str, asyncio.Future[int]] = field(default_factory=dict)
    """Forks that have not said hello, by container: the host pid."""
    waiters: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing of it is left, but for containers and their folders."""
    ended: str = ""
    """Why the server has ended it; empty if it lives, or has died by itself."""

    @property
    def has_containers(self) -> bool:
        return bool(folders.forks_in(self.folder))

    def lose_arrivals(self, reason: str) -> None:
        for arrival in self.arriving.values():
            if not arrival.done():
                arrival.set_exception(Unforkable(reason))


class Templates:
    def __init__(self, clock: Clock, sandbox: Sandbox, logs: LogStore, folder: Path) -> None:
        self._clock = clock
        self._sandbox = sandbox
        self._logs = logs
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._forks = sandbox.forks
        self._by_key: dict[str, Template] = {}
        self._by_id: dict[str, Template] = {}
        self._refusals = Refusals()
        self._tasks: set[asyncio.Task[None]] = set()
        folder.mkdir(parents=True, exist_ok=True)

    # Starting containers

    async def start(self, container: Container, described: SandboxSpec) -> SandboxProcess:
        """A fork of the function's template, or else a sandbox of its own: then `container.cold` says why."""
        try:
            return await self._fork(container, described)
        except Unforkable as reason:
            container.cold = str(reason)
            container.stages.end("template", self._clock.monotonic())
            container.described = with_token(described, container.token)
            return await self._sandbox.start(container.described)

    def warm(self, container: Container, described: SandboxSpec) -> asyncio.Future[dict[str, Any]] | None:
        """Make the template ahead of the first container. Done when it is ready, or will never be; None: not made."""
        key = digest(described, container.spec)
        if self._forks is None or container.spec.resources.gpus or self._refusals.reason(key, self._clock.monotonic()):
            return None
        return (self._by_key.get(key) or self._make(key, container, described)).ready

    async def _fork(self, container: Container, described: SandboxSpec) -> SandboxProcess:
        if self._forks is None:
            raise Unforkable(f"the sandbox tier {self._sandbox.name!r} cannot fork")
        if described.gpus:
            raise Unforkable("it has GPUs: their devices belong to a sandbox of its own")
        key = digest(described, container.spec)
        if reason := self._refusals.reason(key, self._clock.monotonic()):
            raise Unforkable(reason)
        template = self._by_key.get(key) or self._make(key, container, described)
        template.used = self._clock.monotonic()
        await self._await_ready(template, container)
        return await self._fork_of(template, container, described)

    async def _await_ready(self, template: Template, container: Container) -> None:
        if template.ready.done():
            template.ready.result()
            return
        template.waiters += 1
        stopped = self._loop.create_task(container.abandoned.wait())
        limit = container.spec.effective_startup_timeout
        try:
            either: list[asyncio.Future[Any]] = [template.ready, stopped]
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            template.waiters -= 1
        if template.ready.done():
            container.boot(template.ready.result())  # it had to wait for them
            return
        if not template.waiters:
            self._end(template, "nobody waits for it any more")
        if container.abandoned.is_set():
            raise Abandoned
        raise errors.FunctionTimeoutError(too_slow(container.spec))

    async def _fork_of(self, template: Template, container: Container, described: SandboxSpec) -> SandboxProcess:
        assert self._forks is not None
        began = self._clock.monotonic()
        arrival: asyncio.Future[int] = self._loop.create_future()
        arrival.add_done_callback(lambda future: future.cancelled() or future.exception())
        template.arriving[container.container_id] = arrival
        prepared: PreparedFork | None = None
        try:
            prepared = await asyncio.to_thread(self._forks.prepare, described)
            if template.peer is None:
                raise Unforkable(template.ended or HAS_ENDED)
            folders.move_into(template.folder, container.folder)
            self._ask(template, template.peer, described, prepared)
            async with asyncio.timeout(FORK):
                pid = await arrival
            process = prepared.started(pid)
        except (Unforkable, TimeoutError, OSError) as problem:
            reason = str(problem) if isinstance(problem, Unforkable) else f"a fork failed: {problem!r}"
            reason = await self._undo(container, prepared, reason)
            await self._remove_ended(template.folder)
            if not template.ended:
                self._failed(template, reason, began)
            raise Unforkable(reason) from problem
        finally:
            template.arriving.pop(container.container_id, None)
        self._refusals.succeeded(template.key)
        return process

    async def _undo(self, container: Container, prepared: PreparedFork | None, reason: str) -> str:
        """The reason, with the fork's own words. Should it come after all, its token is not valid any more."""
        container.token = secrets.token_hex(32)
        if container.peer is not None:
            container.peer.close()
        if prepared is not None:
            reason = f"{reason}: {words}" if (words := prepared.last_words()) else reason
            await asyncio.to_thread(prepared.abandon)
        await asyncio.to_thread(folders.take_back, container.folder)
        return reason

    def _ask(self, template: Template, peer: Peer, described: SandboxSpec, prepared: PreparedFork) -> None:
        request = fork_request(described, template.sandbox, prepared.rlimits, total_memory_mib())
        groups = prepared.open_groups()
        try:
            (frame,) = encode(Kind.REQUEST, 0, {"method": "fork", "params": request})
            peer.send(frame, groups)
        finally:
            close_all(groups)
        if faults.armed:
            faults.point("worker.fork_requested")

    def arrived(self, container: Container, pid: int) -> None:
        """A container said hello. `pid`: on the host."""
        for template in self._by_id.values():
            arrival = template.arriving.get(container.container_id)
            if arrival is not None and not arrival.done():
                arrival.set_result(pid)

    # Making and ending templates

    def _make(self, key: str, container: Container, described: SandboxSpec) -> Template:
        template_id = new_id("tp")
        folder = self._folder / template_id
        token = secrets.token_hex(32)
        template = Template(
            key=key,
            template_id=template_id,
            token=token,
            app_id=container.app_id,
            spec=container.spec,
            folder=folder,
            sandbox=template_sandbox(described, template_id, token, folder),
            hidden=container.hidden,
            used=self._clock.monotonic(),
            began=self._clock.monotonic(),
            ready=self._loop.create_future(),
        )
        template.ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._by_key[key] = self._by_id[template_id] = template
        self._spawn(self._run(template))
        return template

    async def _run(self, template: Template) -> None:
        try:
            folders.make_template_folder(template.folder)
            template.process = process = await self._sandbox.start(template.sandbox)
            folders.note_process(template.folder, process)
            if template.ended:  # before it was there to be killed
                process.kill()
            template.pump = OutputPump(self._loop, process.outputs, self._sink(template))
            end = await process.wait()
            await template.pump.finish()
            if not template.ready.done():
                self._failed(template, f"its template ended before it was ready: {end.describe()}", template.began)
        except Exception as problem:
            self._failed(template, f"its template could not be started: {problem}", template.began)
        self._drop(template, HAS_ENDED)
        if template.process is not None:
            template.process.close()
        self._by_id.pop(template.template_id, None)
        await self._remove_ended(template.folder)
        template.gone.set()

    def _sink(self, template: Template) -> Callable[[int, str | None, list[str]], None]:
        def sink(stream: int, _call: str | None, lines: list[str]) -> None:
            lines = redacted(lines, template.hidden)
            if template.ready.done():
                self._logs.append(template.app_id, template.template_id, "", stream, lines)
            else:
                template.held.append((stream, lines))

        return sink

    def _refuse(self, template: Template, reason: str) -> None:
        """Containers of this version start cold from now on."""
        self._refusals.refuse(template.key, reason)
        self._end(template, reason)

    def _failed(self, template: Template, reason: str, began: float) -> None:
        """Who waits for it starts cold. The next one tries again, but not for ever."""
        refused = self._refusals.failed(template.key, reason, began, self._clock.monotonic())
        if refused or not template.ready.done():
            self._end(template, reason)

    def _end(self, template: Template, reason: str) -> None:
        """It is not needed now; another one is made when it is."""
        template.ended = template.ended or reason
        self._drop(template, reason)

    def _drop(self, template: Template, reason: str) -> None:
        """At the end of its connection it ends; containers of it go on."""
        if self._by_key.get(template.key) is template:
            del self._by_key[template.key]
        if not template.ready.done():
            template.ready.set_exception(Unforkable(reason))
        template.lose_arrivals(reason)
        if template.peer is not None:
            template.peer.close()
        if template.process is not None and not template.has_containers:
            template.process.kill()

    def images(self) -> list[ImageSpec]:
        """Of the templates that live, whose files must stay though their app may have ended."""
        current = set(self._by_key.values())
        return [t.spec.image for t in self._by_id.values() if t in current or t.has_containers]

    def release(self, alive: Collection[str]) -> None:
        """Ends those of apps that are over: whoever prunes wants the disk more than a warm start."""
        for template in list(self._by_key.values()):
            if template.app_id not in alive and not template.has_containers:
                self._end(template, "its image was pruned")

    async def end_all(self, reason: str) -> None:
        """Those without containers are gone then: they take milliseconds."""
        ending = [template for template in self._by_id.values() if not template.has_containers]
        for template in list(self._by_key.values()):
            self._end(template, reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END):
                for template in ending:
                    await template.gone.wait()

    def forget_secret(self, key: str) -> None:
        """A secret was changed or deleted: nothing is forked any more from a process that has read it."""
        for template in list(self._by_key.values()):
            if key in template.spec.secret_ids:
                self._end(template, "a secret of it was changed")

    def keep_to_budget(self) -> None:
        """Called now and then."""
        sizes = {t: t.process.usage().memory for t in self._by_key.values() if t.process is not None}
        allowed = total_memory_mib() // MEMORY_SHARE
        for template in sorted((t for t in sizes if t.ready.done()), key=lambda t: (sizes[t] <= allowed, t.used)):
            if sum(sizes.values()) <= allowed:
                return
            size = sizes.pop(template)
            if size > allowed:
                self._refuse(template, f"its template takes {size} MiB, and all together may keep {allowed} MiB here")
            else:
                self._end(template, "other templates needed its memory")

    # Its connection

    def hello(self, peer: Peer, parameters: dict[str, Any]) -> dict[str, Any]:
        """InvalidError for a wrong id or token."""
        template = self.identify(parameters)
        template.peer = peer
        return {"spec": to_plain(template.spec)}

    def identify(self, parameters: dict[str, Any]) -> Template:
        template = self._by_id.get(str(parameters.get("container_id", "")))
        token = str(parameters.get("token", "")).encode(errors="replace")
        if template is None or not hmac.compare_digest(template.token.encode(), token):
            raise errors.InvalidError("no such template, or a wrong token")
        return template

    def frame(self, peer: Peer, header: Header, body: bytes, descriptors: Any) -> None:
        """What a template sends: that it is ready, that it cannot be forked, that a fork of it has ended."""
        close_all(descriptors)
        template: Template = peer.identity
        try:
            message = peer.assembler.feed(header[0], header[1], header[4], body)
            if message is None:
                return
            method, parameters = message["method"], message["params"]
            if method == "template_ready":
                self._ready(template, parameters)
                peer.reply(header[4], {})
            elif method == "template_failed":
                peer.reply(header[4], {})
                self._refuse(template, str(parameters["reason"])[:500])
            elif method == "fork_ended":
                arrival = template.arriving.get(str(parameters["container_id"]))
                if arrival is not None and not arrival.done():
                    arrival.set_exception(Unforkable(f"a fork of it did not start: {parameters['reason'][:500]}"))
        except (ValueError, TypeError, KeyError):
            peer.close()

    def _ready(self, template: Template, stages: dict[str, Any]) -> None:
        if template.ready.done():
            return
        template.ready.set_result(stages)
        for stream, lines in template.held:
            self._logs.append(template.app_id, template.template_id, "", stream, lines)
        template.held.clear()
        self.keep_to_budget()

    def gone(self, template: Template, peer: Peer) -> None:
        """Its connection ended. A fork that it has made without telling is refused: its container starts cold."""
        if template.peer is not peer:
            return
        template.peer = None
        if template.ready.done():
            self._drop(template, HAS_ENDED)
        elif template.process is not None:  # `_run` will know how it ended
            self._loop.call_later(END, template.process.kill)

    # What is left of them

    async def remove(self, folder: Path) -> None:
        """The folder of a container that has ended, and its template's, if that has ended and this was the last."""
        template = folders.template_of(folder)
        await asyncio.to_thread(folders.remove_folder, folder)
        if template is not None:
            await self._remove_ended(template)

    async def _remove_ended(self, template: Path) -> None:
        """Called whenever a template has ended and whenever it has one container less: the later of the two removes."""
        if template.name not in self._by_id and not folders.forks_in(template):
            await asyncio.to_thread(folders.remove_template, template, self._sandbox)

    def remove_leftovers(self, kept: set[str]) -> None:
        """Templates of an earlier worker. Those whose containers live end without them; the others are killed."""
        for folder in self._folder.iterdir():
            if not kept.intersection(folders.forks_in(folder)):
                folders.remove_template(folder, self._sandbox)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
