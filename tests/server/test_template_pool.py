"""Which templates are kept, and what a container gets when one fails. The sandbox and the template's connection are
held by the tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_peers import FakePeer
from fleet_bench import FakeProcess, turns

from lorry.clock import ManualClock
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.sandbox.interface import SandboxSpec, Usage
from lorry.scheduler.inventory import Reservation
from lorry.server import templates as module
from lorry.server.container import Container
from lorry.server.folders import template_of
from lorry.server.logs import LogStore
from lorry.server.templates import Template, Templates
from lorry.wire.control import Assembler, encode
from lorry.wire.frames import HEADER, HEADER_SIZE, Kind

SPEC = FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"))


class FakeFork:
    """Enough of `PreparedFork`, and the process that comes of it."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.rlimits: list[tuple[int, int]] = []

    def open_groups(self) -> list[int]:
        return []

    def started(self, pid: int) -> Any:
        return SimpleNamespace(pid=pid)

    def last_words(self) -> str:
        return self.words

    def abandon(self) -> None: ...


class FakeTier:
    """Enough of `Sandbox`: `processes` are its templates and its cold starts, `environments` what they were given."""

    name = "fake"

    def __init__(self) -> None:
        self.processes: dict[str, FakeProcess] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.words = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self.forks = SimpleNamespace(prepare=self.prepare)

    def prepare(self, spec: SandboxSpec) -> FakeFork:
        (Path(spec.folder) / "forked").mkdir()
        return FakeFork(self.words)

    async def start(self, spec: SandboxSpec) -> FakeProcess:
        await self.gate.wait()
        self.processes[spec.container_id] = FakeProcess()
        self.environments[spec.container_id] = dict(spec.env)
        return self.processes[spec.container_id]

    def adopt(self, *_: Any) -> None: ...


class Pool:
    def __init__(self, root: Path) -> None:
        self.clock, self.tier = ManualClock(), FakeTier()
        self.folder = root / "containers"
        self.folder.mkdir()
        self.templates = Templates(self.clock, self.tier, LogStore(root / "logs", self.clock, 1), root / "templates")  # type: ignore[arg-type]
        self.containers = 0

    def start(self) -> tuple[Container, asyncio.Task[Any]]:
        """Of one version, at a later moment than whatever was before."""
        self.clock.advance(1)
        self.containers += 1
        container_id = f"ct-{self.containers}"
        container = Container(
            container_id=container_id,
            app_id="ap-1",
            target=1,
            spec=SPEC,
            token="first",
            folder=self.folder / container_id,
            reservation=Reservation(container_id=container_id, cores=1, memory_mib=1),
            gpu_model="",
            started=0.0,
            started_wall=0.0,
        )
        container.folder.mkdir()
        (container.folder / "hidden").write_text("kept")
        env = (("LORRY_CONTAINER_ID", container_id), ("LORRY_TOKEN", container.token))
        described = SandboxSpec(container_id=container_id, argv=("python",), env=env, folder=str(container.folder))
        return container, asyncio.get_running_loop().create_task(self.templates.start(container, described))

    async def template(self, *, ready: bool = True) -> Template:
        """The one that lives, once it has connected."""
        await turns()
        (template,) = self.templates._by_key.values()
        if template.peer is None:
            peer = FakePeer(template)
            peer.assembler = Assembler()  # type: ignore[attr-defined]
            parameters = {"container_id": template.template_id, "token": template.token}
            self.templates.hello(peer, parameters)  # type: ignore[arg-type]
            peer.close = lambda: self.templates.gone(template, peer)  # type: ignore
            peer.reply = lambda *_: None  # type: ignore[attr-defined]
        if ready:
            self.says(template, "template_ready")
        return template

    def says(self, template: Template, method: str, **params: Any) -> None:
        for frame in encode(Kind.REQUEST, 0, {"method": method, "params": params}):
            self.templates.frame(template.peer, HEADER.unpack_from(frame), frame[HEADER_SIZE:], ())  # type: ignore[arg-type]

    async def asked(self, template: Template, count: int = 1) -> list[str]:
        """Containers that it was asked to fork."""
        peer: Any = template.peer
        while len(peer.got) < count:
            await asyncio.sleep(0.001)
        return [json.loads(body)["params"]["container_id"] for _, body in peer.got]


def on(tmp_path: Path, test: Callable[[Pool], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(Pool(tmp_path)), 10)

    asyncio.run(main())


def test_a_fork_that_says_hello_is_the_container(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        container, start = pool.start()
        template = await pool.template()
        assert await pool.asked(template) == ["ct-1"]
        pool.templates.arrived(container, 77)
        assert (await start).pid == 77
        assert container.cold == ""
        assert template_of(container.folder) == template.folder

    on(tmp_path, test)


def test_a_fork_that_fails_starts_cold_with_a_token_and_a_folder_of_its_own(tmp_path: Path) -> None:
    """The fork may still come: it must not find its way in."""

    async def test(pool: Pool) -> None:
        pool.tier.words = "mounting: no space"
        container, start = pool.start()
        template = await pool.template()
        await pool.asked(template)
        pool.says(template, "fork_ended", container_id="ct-1", reason="it ended with code 70")
        assert await start is pool.tier.processes["ct-1"]
        assert container.cold == "a fork of it did not start: it ended with code 70: mounting: no space"
        assert container.token != "first"
        assert pool.tier.environments["ct-1"]["LORRY_TOKEN"] == container.token
        assert template_of(container.folder) is None
        assert (container.folder / "hidden").read_text() == "kept"
        assert not template.has_containers

    on(tmp_path, test)


def test_one_that_does_not_answer_is_waited_for_no_longer_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORK", 0.02)

    async def test(pool: Pool) -> None:
        container, start = pool.start()
        await pool.template()
        await start
        assert "TimeoutError" in container.cold

    on(tmp_path, test)


def test_forks_that_fail_together_cost_each_a_cold_start_and_the_version_nothing(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        starts = [pool.start() for _ in range(5)]
        template = await pool.template()
        for container_id in await pool.asked(template, 5):
            pool.says(template, "fork_ended", container_id=container_id, reason="no memory")
        await asyncio.gather(*(start for _, start in starts))
        assert all(container.cold for container, _ in starts)
        container, start = pool.start()
        assert await pool.template() is template
        await pool.asked(template, 6)
        pool.templates.arrived(container, 7)
        await start
        assert container.cold == ""

    on(tmp_path, test)


def test_a_template_that_ends_while_a_fork_of_it_is_prepared_says_why(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        def prepare(_spec: SandboxSpec) -> FakeFork:
            asyncio.run_coroutine_threadsafe(ended(), loop).result()
            return FakeFork("")

        async def ended() -> None:
            await pool.templates.end_all("a secret of it was changed")

        loop = asyncio.get_running_loop()
        pool.tier.forks.prepare = prepare
        container, start = pool.start()
        await pool.template()
        await start
        assert container.cold == "a secret of it was changed"
        assert list((tmp_path / "templates").iterdir()) == []

    on(tmp_path, test)


def test_the_third_failure_in_a_row_ends_the_template_and_refuses_the_version(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        for number in range(1, 4):
            _, start = pool.start()
            template = await pool.template()
            await pool.asked(template, number)
            pool.says(template, "fork_ended", container_id=f"ct-{number}", reason="no memory")
            await start
        assert pool.tier.processes[template.template_id].killed
        container, start = pool.start()
        assert await start is pool.tier.processes["ct-4"]
        assert "3 failures in a row" in container.cold

    on(tmp_path, test)


def test_a_template_that_dies_does_not_keep_its_forks_waiting_though_others_of_them_live(tmp_path: Path) -> None:
    """Its sandbox lives until the last of them has ended."""

    async def test(pool: Pool) -> None:
        first, start = pool.start()
        template = await pool.template()
        await pool.asked(template)
        pool.templates.arrived(first, 7)
        await start
        second, start = pool.start()
        await pool.asked(template, 2)
        template.peer.close()  # type: ignore[union-attr]
        assert await start is pool.tier.processes["ct-2"]
        assert second.cold == "its template has ended"
        assert not pool.tier.processes[template.template_id].killed

    on(tmp_path, test)


def test_a_template_that_dies_while_it_imports_is_made_again(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        container, start = pool.start()
        template = await pool.template(ready=False)
        pool.tier.processes[template.template_id].end(-9)
        await start
        assert container.cold.startswith("its template ended before it was ready: it ")
        await asyncio.wait(pool.templates._tasks)
        assert not template.folder.exists()
        pool.start()
        assert await pool.template() is not template

    on(tmp_path, test)


def test_a_template_that_is_ended_before_it_is_there_is_killed_as_soon_as_it_is(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        pool.tier.gate.clear()
        container, start = pool.start()
        await turns()
        ending = asyncio.ensure_future(pool.templates.end_all("a secret of it was changed"))
        await turns()
        pool.tier.gate.set()
        await ending
        await start
        assert container.cold == "a secret of it was changed"
        assert {process.killed for name, process in pool.tier.processes.items() if name != "ct-1"} == {True}

    on(tmp_path, test)


def test_an_import_that_raises_is_not_tried_again(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        _, start = pool.start()
        template = await pool.template(ready=False)
        pool.says(template, "template_failed", reason="its import raised ValueError")
        await start
        container, start = pool.start()
        await start
        assert container.cold == "its import raised ValueError"

    on(tmp_path, test)


def test_the_wait_for_a_template_in_vain_is_a_stage_of_its_own(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        container, start = pool.start()
        container.stages.end("image", pool.clock.monotonic())
        template = await pool.template(ready=False)
        pool.clock.advance(1.2)
        pool.says(template, "template_failed", reason="it has threads")
        await start
        assert container.stages.seconds["template"] == pytest.approx(1.2)
        assert container.stages.mark == pool.clock.monotonic(), "the sandbox begins now"

    on(tmp_path, test)


def test_a_template_goes_with_the_last_container_of_it(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        container, start = pool.start()
        template = await pool.template()
        await pool.asked(template)
        pool.templates.arrived(container, 7)
        await start
        await pool.templates.end_all("the server ends")
        pool.tier.processes[template.template_id].end(0)
        await asyncio.wait(pool.templates._tasks)
        assert template.folder.exists()
        await pool.templates.remove(container.folder)
        assert not template.folder.exists()
        assert list(pool.folder.iterdir()) == []

    on(tmp_path, test)


def test_a_template_goes_with_its_last_fork_that_failed(tmp_path: Path) -> None:
    async def test(pool: Pool) -> None:
        _, start = pool.start()
        template = await pool.template()
        await pool.asked(template)
        pool.tier.processes[template.template_id].end(-9)
        await asyncio.wait(pool.templates._tasks)
        await start
        assert not template.folder.exists()

    on(tmp_path, test)


def parked(pool: Pool, name: str, used: float, size: int) -> FakeProcess:
    """A template that is ready and takes so many MiB."""
    process = FakeProcess()
    process.usage = lambda: Usage(cpu_seconds=0, memory=size, peak_memory=size)  # type: ignore[method-assign]
    ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    ready.set_result({})
    pool.templates._by_key[name] = Template(
        key=name,
        template_id=f"tp-{name}",
        token="",
        app_id="",
        spec=SPEC,
        folder=pool.folder / name,
        sandbox=SandboxSpec(container_id=name, argv=(), env=(), folder=""),
        hidden=(),
        used=used,
        began=0.0,
        ready=ready,
        process=process,  # type: ignore[arg-type]
        peer=FakePeer(),  # type: ignore[arg-type]
    )
    return process


def test_the_template_that_was_used_longest_ago_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "total_memory_mib", lambda: 1000)  # of which a quarter is for templates

    async def test(pool: Pool) -> None:
        old, new, middle = parked(pool, "old", 1, 100), parked(pool, "new", 3, 120), parked(pool, "middle", 2, 110)
        pool.templates.keep_to_budget()
        assert (old.killed, middle.killed, new.killed) == (True, False, False)
        assert set(pool.templates._by_key) == {"middle", "new"}
        assert not pool.templates._refusals.reason("old", 0.0)

    on(tmp_path, test)


def test_a_template_that_is_larger_than_all_may_be_is_not_made_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "total_memory_mib", lambda: 1000)

    async def test(pool: Pool) -> None:
        small, large = parked(pool, "small", 1, 10), parked(pool, "large", 2, 300)
        pool.templates.keep_to_budget()
        assert large.killed
        assert not small.killed
        reason = pool.templates._refusals.reason("large", 0.0)
        assert "300 MiB" in reason
        assert "250 MiB" in reason

    on(tmp_path, test)
