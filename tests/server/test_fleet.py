"""Containers through their lives, with a sandbox that tests hold in their hands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fake_peers import FakePeer, open_descriptors

from lorry import errors
from lorry.clock import ManualClock
from lorry.lifecycle.container import ContainerState
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.model.records import Status
from lorry.sandbox.interface import Exit, Usage
from lorry.scheduler.dispatch import Work
from lorry.scheduler.place import Placed
from lorry.server.container import Container
from lorry.server.fleet import MAX_BOOT_DEATHS, Fleet, Services
from lorry.server.journal import Journal
from lorry.server.logs import LogStore
from lorry.server.parcels import Broker, Parcel, Spool
from lorry.server.switch import Switch
from lorry.store.memory import MemoryStore
from lorry.wire.frames import Kind

TARGET = 5


class FakeProcess:
    pid, pid_started = 99_999_999, 1

    def __init__(self) -> None:
        pipes = [os.pipe(), os.pipe()]
        self.outputs = (pipes[0][0], pipes[1][0])
        for fd, writer in pipes:
            os.set_blocking(fd, False)
            os.close(writer)
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.killed = False

    async def wait(self) -> Exit:
        return await self.exit

    def end(self, code: int = 0) -> None:
        if not self.exit.done():
            self.exit.set_result(Exit(code=code))

    def kill(self) -> None:
        self.killed = True
        self.end(-9)

    def usage(self) -> Usage:
        return Usage(cpu_seconds=1.0, memory=2, peak_memory=3)

    def close(self) -> None:
        for fd in self.outputs:
            os.close(fd)


class FakeSandbox:
    def __init__(self) -> None:
        self.processes: list[FakeProcess] = []
        self.refusal: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def start(self, _spec: Any) -> FakeProcess:
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        self.processes.append(FakeProcess())
        return self.processes[-1]


class Bench:
    def __init__(self, root: Path, **spec: Any) -> None:
        self.clock, self.store, self.sandbox = ManualClock(), MemoryStore(), FakeSandbox()
        broker = Broker()
        journal = Journal(self.store, Spool(root / "spool", broker), broker, self.clock)
        self.switch = Switch(self.clock, self.store, broker, journal)
        self.spec = FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), **spec)
        self.switch.spec_of = lambda _target: self.spec
        self.switch.spec(TARGET)
        self.logs = LogStore(root / "logs", self.clock, 1)

        async def prepare(_container: Container) -> Any:
            return None

        self.fleet = Fleet(
            Services(
                clock=self.clock,
                store=self.store,
                switch=self.switch,
                logs=self.logs,
                sandbox=self.sandbox,  # type: ignore[arg-type]
                folder=root / "containers",
                prepare=prepare,
            )
        )
        self.switch.containers = self.fleet
        self.client = FakePeer()

    def start(self) -> Container:
        placed = Placed(cores=1.0, memory_mib=128, sentence="it fits")
        container_id = self.fleet.start("ap-1", TARGET, self.spec, placed, "a test wants it")
        return self.fleet.containers[container_id]

    def hello(self, container: Container) -> FakePeer:
        peer = FakePeer()
        peer.pid = 0  # type: ignore[attr-defined]
        self.fleet.hello(peer, {"container_id": container.container_id, "token": container.token})  # type: ignore[arg-type]
        return peer

    def call(self, number: int = 1) -> None:
        call = number.to_bytes(16, "big")
        self.switch._origins[call] = self.client  # type: ignore[assignment]
        self.switch.submit(Work(call=call, target=TARGET), Parcel(b"args"))

    def outcomes(self) -> list[tuple[int, bytes]]:
        return [(header[2], body) for header, body in self.client.kinds(Kind.RESULT)]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(tmp_path: Path, test: Callable[[Bench], Coroutine[Any, Any, None]], **spec: Any) -> None:
    async def main() -> None:
        before = open_descriptors()
        bench = Bench(tmp_path, **spec)
        await test(bench)
        for process in bench.sandbox.processes:
            process.end()
        await bench.fleet.settle()
        assert bench.fleet.containers == {}
        assert list((tmp_path / "containers").iterdir()) == []
        bench.logs.close_app("ap-1", {})
        assert open_descriptors() == before

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_container_boots_works_and_ends(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        container = bench.start()
        await turns()
        assert container.state is ContainerState.BOOTING
        peer = bench.hello(container)
        bench.call()
        bench.fleet.ready(container)
        assert container.state is ContainerState.READY
        assert len(peer.kinds(Kind.INPUT)) == 1
        bench.sandbox.processes[0].end(0)
        await asyncio.wait_for(container.gone.wait(), 5)
        assert container.state is ContainerState.DEAD
        assert bench.store.usage(app_id="ap-1")[0].cpu_seconds == 1.0

    run(tmp_path, test)


def test_a_container_that_is_ready_before_its_launcher_says_so_is_ready(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.sandbox.gate = asyncio.Event()
        container = bench.start()
        await turns()
        peer = bench.hello(container)
        bench.fleet.ready(container)
        bench.sandbox.gate.set()
        await turns(10)
        assert container.state is ContainerState.READY
        bench.call()
        assert len(peer.kinds(Kind.INPUT)) == 1

    run(tmp_path, test)


def test_a_container_that_is_stopped_while_it_starts_is_killed_as_soon_as_it_is_there(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.sandbox.gate = asyncio.Event()
        container = bench.start()
        await turns()
        bench.fleet.stop(container.container_id, "not wanted")
        assert container.state is ContainerState.STOPPING
        bench.sandbox.gate.set()
        await asyncio.wait_for(container.gone.wait(), 5)
        assert bench.sandbox.processes[0].killed

    run(tmp_path, test)


def test_a_full_disk_does_not_save_a_container_that_is_stopped_while_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(bench: Bench) -> None:
        async def full(*_: Any) -> None:
            raise errors.StorageFullError("full")

        monkeypatch.setattr(bench.store, "put_container", full)
        bench.sandbox.gate = asyncio.Event()
        container = bench.start()
        await turns()
        bench.fleet.stop(container.container_id, "not wanted")
        bench.sandbox.gate.set()
        await asyncio.wait_for(container.gone.wait(), 5)
        assert bench.sandbox.processes[0].killed

    run(tmp_path, test)


def test_ready_after_stop_changes_nothing(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        container = bench.start()
        await turns()
        peer = bench.hello(container)
        bench.fleet.stop(container.container_id, "not wanted", within=0.01)
        assert len(peer.kinds(Kind.REQUEST)) == 1
        bench.fleet.ready(container)
        bench.call()
        assert container.state is ContainerState.STOPPING
        assert peer.kinds(Kind.INPUT) == []
        await asyncio.wait_for(container.gone.wait(), 5)  # it did not listen
        assert bench.sandbox.processes[0].killed

    run(tmp_path, test)


def test_a_start_that_is_refused_ends_what_waits_with_the_reason(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.sandbox.refusal = errors.InvalidError("no such mount")
        bench.call()
        container = bench.start()
        await asyncio.wait_for(container.gone.wait(), 5)
        ((status, body),) = bench.outcomes()
        assert status == Status.PLATFORM
        assert b"no such mount" in body
        assert bench.fleet.failed_starts[TARGET][0] == 1
        bench.fleet.forget_function(TARGET)
        assert bench.fleet.failed_starts == {}

    run(tmp_path, test)


def test_a_boot_that_takes_too_long_ends_what_waits_and_the_container(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.call()
        container = bench.start()
        await asyncio.wait_for(container.gone.wait(), 5)
        ((status, body),) = bench.outcomes()
        assert status == Status.TIMEOUT
        assert b"startup_timeout" in body
        assert bench.sandbox.processes[0].killed

    run(tmp_path, test, startup_timeout=0.05)


def test_an_import_that_kills_its_container_is_tried_a_few_times(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.call()
        for number in range(MAX_BOOT_DEATHS):
            assert bench.outcomes() == []
            container = bench.start()
            await turns()
            bench.sandbox.processes[number].end(-11)
            await asyncio.wait_for(container.gone.wait(), 5)
        ((status, body),) = bench.outcomes()
        assert status == Status.LOST
        assert f"{MAX_BOOT_DEATHS} times".encode() in body

    run(tmp_path, test)


@pytest.mark.parametrize("token", ["", "wrong", "é", 5, None])
def test_a_wrong_token_is_nobody(tmp_path: Path, token: Any) -> None:
    async def test(bench: Bench) -> None:
        container = bench.start()
        await turns()
        with pytest.raises(errors.InvalidError):
            bench.fleet.hello(FakePeer(), {"container_id": container.container_id, "token": token})  # type: ignore[arg-type]
        assert container.peer is None

    run(tmp_path, test)


def test_the_inputs_of_a_container_that_dies_run_in_the_next(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        first = bench.start()
        await turns()
        bench.hello(first)
        bench.fleet.ready(first)
        bench.call()
        bench.sandbox.processes[0].end(-9)
        await asyncio.wait_for(first.gone.wait(), 5)
        second = bench.start()
        await turns()
        peer = bench.hello(second)
        bench.fleet.ready(second)
        assert len(peer.kinds(Kind.INPUT)) == 1
        assert bench.outcomes() == []

    run(tmp_path, test)
