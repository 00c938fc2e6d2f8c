"""Templates: one parked process per version of a function, from which its containers are forked.

A function's version is a digest of all that its import can see. Its first container makes the template and waits for
its import; later ones, of later runs too, cost a fork. What cannot be forked starts cold, with the reason kept for
`lorry container list`. A template ends with this worker; the containers that it forked go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorry import errors
from lorry.clock import Clock
from lorry.ids import new_id
from lorry.model.function import FunctionSpec
from lorry.model.image import ImageSpec
from lorry.sandbox.fork import POOL
from lorry.sandbox.interface import Mount, PreparedFork, Sandbox, SandboxProcess, SandboxSpec
from lorry.sandbox.procfs import total_memory_mib
from lorry.sandbox.rootfs import HOME, TMP, VAR_TMP
from lorry.server.container import Container, redacted
from lorry.server.logs import LogStore, OutputPump
from lorry.server.peers import Peer, close_all
from lorry.timeouts import FORK
from lorry.wire.codec import to_plain
from lorry.wire.control import encode
from lorry.wire.frames import Header, Kind

MEMORY_SHARE = 4
"""Templates may keep a quarter of the machine's memory; then the one that was used last goes first."""
PER_CONTAINER = ("LORRY_CONTAINER_ID", "LORRY_TOKEN", "LORRY_APP_ID", "CUDA_VISIBLE_DEVICES")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Fewer page tables: a fork of 5 GB takes 9 ms instead of 74 (DESIGN.md, 7)."""


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

    @property
    def containers(self) -> list[Path]:
        """Folders of those that it has forked and that are not buried."""
        return list((self.folder / "pool").glob("ct-*"))


class Templates:
    def __init__(self, clock: Clock, sandbox: Sandbox, logs: LogStore, folder: Path) -> None:
        self._clock = clock
        self._sandbox = sandbox
        self._logs = logs
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._can_fork = sandbox.forks
        self._by_key: dict[str, Template] = {}
        self._by_id: dict[str, Template] = {}
        self._unforkable: dict[str, str] = {}
        """By key: the reason. Forgotten with the worker: the next one tries again."""
        self._tasks: set[asyncio.Task[None]] = set()
        folder.mkdir(parents=True, exist_ok=True)

    # Starting containers

    async def start(self, container: Container, described: SandboxSpec) -> SandboxProcess:
        """A fork of the function's template, or else a sandbox of its own: then `container.cold` says why."""
        try:
            return await self._fork(container, described)
        except Unforkable as reason:
            container.cold = str(reason)
            return await self._sandbox.start(described)

    def warm(self, container: Container, described: SandboxSpec) -> None:
        """Make the template ahead of the first container."""
        key = digest(described, container.spec)
        if self._can_fork and not container.spec.resources.gpus and key not in self._unforkable | self._by_key:
            self._make(key, container, described)

    async def _fork(self, container: Container, described: SandboxSpec) -> SandboxProcess:
        if not self._can_fork:
            raise Unforkable(f"the sandbox tier {self._sandbox.name!r} cannot fork")
        if described.gpus:
            raise Unforkable("it has GPUs: their devices belong to a sandbox of its own")
        key = digest(described, container.spec)
        if key in self._unforkable:
            raise Unforkable(self._unforkable[key])
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
        raise errors.FunctionTimeoutError(
            f"importing the code and running @enter took longer than {limit:g} s (startup_timeout, by default the "
            "function's timeout)"
        )

    async def _fork_of(self, template: Template, container: Container, described: SandboxSpec) -> SandboxProcess:
        container_id = container.container_id
        home = template.folder / "pool" / container_id
        os.rename(container.folder, home)
        os.symlink(home, container.folder)
        prepared = await asyncio.to_thread(self._sandbox.prepare_fork, described)
        arrival: asyncio.Future[int] = self._loop.create_future()
        template.arriving[container_id] = arrival
        try:
            self._ask(template, described, prepared)
            async with asyncio.timeout(FORK):
                pid = await arrival
            return prepared.started(pid)
        except (Unforkable, TimeoutError, OSError) as problem:
            words = prepared.last_words()
            await asyncio.to_thread(prepared.abandon)
            _empty(container.folder)
            reason = str(problem) if isinstance(problem, Unforkable) else f"a fork failed: {problem!r}"
            reason = f"{reason} {words}".rstrip()
            if template.peer is not None:  # it lives, so the next fork would fail too
                self._refuse(template, reason)
            raise Unforkable(reason) from problem
        finally:
            template.arriving.pop(container_id, None)

    def _ask(self, template: Template, described: SandboxSpec, prepared: PreparedFork) -> None:
        if template.peer is None or template.peer.closed:
            raise Unforkable("its template has ended")
        given = dict(template.sandbox.env)
        wanted = dict(described.env)
        request = {
            "container_id": described.container_id,
            "keep": kept_mounts(described),
            "shm_mib": described.memory_limit or max(64, total_memory_mib() // 2),
            "rlimits": prepared.rlimits,
            "cwd": described.cwd,
            "env": {name: value for name, value in wanted.items() if given.get(name) != value},
            "threads": int(wanted.get("OMP_NUM_THREADS", "1") or 1),
        }
        groups = prepared.open_groups()
        try:
            (frame,) = encode(Kind.REQUEST, 0, {"method": "fork", "params": request})
            template.peer.send(frame, groups)
        finally:
            close_all(groups)

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
            ready=self._loop.create_future(),
        )
        template.ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._by_key[key] = self._by_id[template_id] = template
        self._spawn(self._run(template))
        return template

    async def _run(self, template: Template) -> None:
        try:
            template.folder.mkdir(mode=0o700)
            (template.folder / "pool").mkdir(mode=0o711)
            template.process = process = await self._sandbox.start(template.sandbox)
            _note(template.folder, process)
        except Exception as problem:
            self._refuse(template, f"its template could not be started: {problem}")
            return
        template.pump = OutputPump(self._loop, process.outputs, self._sink(template))
        await process.wait()
        if template.ready.done():
            self._end(template, "its template has ended")
        else:
            self._refuse(template, "its template ended before it was ready")
        for arrival in template.arriving.values():
            if not arrival.done():
                arrival.set_exception(Unforkable("its template has ended"))
        process.close()
        self._by_id.pop(template.template_id, None)
        if not template.containers:
            await asyncio.to_thread(shutil.rmtree, template.folder, ignore_errors=True)

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
        self._unforkable[template.key] = reason
        self._end(template, reason)

    def _end(self, template: Template, reason: str) -> None:
        """It is not needed now; another one is made when it is."""
        if self._by_key.get(template.key) is template:
            del self._by_key[template.key]
        if not template.ready.done():
            template.ready.set_exception(Unforkable(reason))
        self._close(template)

    def _close(self, template: Template) -> None:
        """At the end of its connection it ends; containers of it go on."""
        if template.peer is not None:
            template.peer.close()
        if template.process is not None and not template.containers:
            template.process.kill()

    def images(self) -> list[ImageSpec]:
        """Of the templates that live, whose files must stay though their app may have ended."""
        current = set(self._by_key.values())
        return [t.spec.image for t in self._by_id.values() if t in current or t.containers]

    def release(self, alive: Collection[str]) -> None:
        """Ends those of apps that are over: whoever prunes wants the disk more than a warm start."""
        for template in list(self._by_key.values()):
            if template.app_id not in alive and not template.containers:
                self._end(template, "its image was pruned")

    def end_all(self, reason: str) -> None:
        for template in list(self._by_key.values()):
            self._end(template, reason)

    def forget_secret(self, key: str) -> None:
        """A secret was changed or deleted: nothing is forked any more from a process that has read it."""
        for template in list(self._by_key.values()):
            if key in template.spec.secret_ids:
                self._end(template, "a secret of it was changed")

    def keep_to_budget(self) -> None:
        """Called now and then."""
        sizes = {t: t.process.usage().memory for t in self._by_key.values() if t.process is not None}
        allowed = total_memory_mib() // MEMORY_SHARE
        for template in sorted(sizes, key=lambda t: t.used):
            if sum(sizes.values()) <= allowed:
                return
            if template.ready.done():
                self._end(template, "other templates needed its memory")
                del sizes[template]

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
                    arrival.set_exception(Unforkable("a fork of it could not become a container"))
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
        """Its connection ended."""
        if template.peer is peer:
            template.peer = None
            self._end(template, "its template has ended")

    # A worker's start

    def remove_leftovers(self, kept: set[str]) -> None:
        """Templates of an earlier worker. Those whose containers live end without them; the others are killed."""
        for folder in self._folder.iterdir():
            if any(path.name in kept for path in (folder / "pool").glob("ct-*")):
                continue
            with contextlib.suppress(OSError, ValueError, KeyError):
                noted = json.loads((folder / "process").read_text())
                process = self._sandbox.adopt(folder.name, str(folder), noted["pid"], noted["started"])
                if process is not None:
                    process.kill()
                    process.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def digest(described: SandboxSpec, spec: FunctionSpec) -> str:
    """Of everything that the import can see. Secrets are part of the environment, and so of this."""
    plain = [
        described.argv,
        sorted((name, value) for name, value in described.env if name not in PER_CONTAINER),
        [(mount.source, mount.target, mount.read_only) for mount in described.mounts],
        to_plain(described.root),
        [described.cwd, described.block_network, described.memory_limit, described.cpu_limit, described.pids_limit],
        to_plain(spec.code),
        [spec.kind, spec.parameters],
    ]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def template_sandbox(described: SandboxSpec, template_id: str, token: str, folder: Path) -> SandboxSpec:
    """The sandbox of a container, without what is the container's own: one thread, no device, and a pool."""
    env = dict(described.env) | dict.fromkeys(THREADS, "1")
    env |= {"LORRY_TEMPLATE": "1", "LORRY_CONTAINER_ID": template_id, "LORRY_TOKEN": token, "CUDA_VISIBLE_DEVICES": ""}
    env.setdefault("GLIBC_TUNABLES", HUGE_PAGES)
    pool = Mount(source=str(folder / "pool"), target=POOL, read_only=False)
    return dataclasses.replace(
        described,
        container_id=template_id,
        env=tuple(sorted(env.items())),
        folder=str(folder),
        mounts=(*described.mounts, pool),
        gpus=(),
        template=True,
    )


def kept_mounts(described: SandboxSpec) -> list[str]:
    """What lies mounted below the folders that each container has for itself, the outermost only."""
    own = [f"{folder}/" for folder in (HOME, TMP, VAR_TMP)]
    targets = sorted(mount.target for mount in described.mounts if mount.target.startswith(tuple(own)))
    kept: list[str] = []
    for target in targets:
        if not kept or not target.startswith(f"{kept[-1]}/"):
            kept.append(target)
    return kept


def remove_folder(folder: Path) -> None:
    """A container's folder: its own, or a link into its template's."""
    if folder.is_symlink():
        _remove_tree(folder.resolve())
        folder.unlink(missing_ok=True)
    else:
        _remove_tree(folder)


def _remove_tree(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # a program may nest its folders as deep as it likes
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)


def _note(folder: Path, process: SandboxProcess) -> None:
    (folder / "process").write_text(json.dumps({"pid": process.pid, "started": process.pid_started}))


def _empty(folder: Path) -> None:
    """For a cold start in the folder of a fork that failed."""
    for name in ("home", "tmp", "root"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("out", "err", "exit", "cgroup", "forked"):
        (folder / name).unlink(missing_ok=True)
