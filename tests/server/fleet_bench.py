"""A fleet with a sandbox that tests hold in their hands, and everything that it stands on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from fake_peers import FakePeer

from lorry.clock import ManualClock
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.sandbox.interface import Exit, Usage
from lorry.scheduler.dispatch import Work
from lorry.scheduler.place import Placed
from lorry.server.container import Container
from lorry.server.fleet import Fleet
from lorry.server.folders import remove_folder
from lorry.server.journal import Journal
from lorry.server.logs import LogStore
from lorry.server.parcels import Broker, Parcel, Spool
from lorry.server.services import Services
from lorry.server.switch import Switch
from lorry.store.memory import MemoryStore
from lorry.wire.frames import Kind

TARGET = 5


class FakeProcess:
    pid, pid_started = 99_999_999, 1
    forked = False

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


class ColdStarts:
    """No templates."""

    def __init__(self, sandbox: FakeSandbox) -> None:
        self._sandbox = sandbox

    async def start(self, _container: Container, described: Any) -> Any:
        return await self._sandbox.start(described)

    async def remove(self, folder: Path) -> None:
        remove_folder(folder)

    def arrived(self, container: Container, pid: int) -> None: ...


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
                templates=ColdStarts(self.sandbox),  # type: ignore[arg-type]
                folder=root / "containers",
                notes=root / "started",
                machine_mib=1000,
                prepare=prepare,
                hidden=lambda _container: ("a-secret",),
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
