"""Frames to events and effects to frames, between fake clients and fake containers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_peers import FakePeer, memory_file, open_descriptors, reference

from lorry.clock import ManualClock
from lorry.errors import NotFoundError
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.model.records import Status
from lorry.server.journal import Journal
from lorry.server.parcels import Broker, Spool
from lorry.server.switch import Switch
from lorry.store.memory import MemoryStore
from lorry.timeouts import KILL_GRACE, UNCLAIMED
from lorry.wire.frames import HEADER, Flag, Kind, pack

SPEC = FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), timeout=10.0)
TARGET = 5


class FakeContainers:
    def __init__(self) -> None:
        self.peers: dict[str, FakePeer] = {}
        self.killed: list[str] = []
        self.retired: list[str] = []
        self.nudged: list[str] = []
        self.changes: list[int] = []

    def peer_of(self, container: str) -> FakePeer | None:
        return self.peers.get(container)

    def working_on(self, container: str, call: bytes) -> FakePeer | None:
        return self.peers.get(container)

    def nudge(self, container: str) -> None:
        self.nudged.append(container)

    def kill(self, container: str, reason: str) -> None:
        self.killed.append(container)

    def retire(self, container: str, reason: str) -> None:
        self.retired.append(container)

    def changed(self, target: int) -> None:
        self.changes.append(target)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.clock, self.store, self.broker = ManualClock(), MemoryStore(), Broker()
        journal = Journal(self.store, Spool(folder, self.broker), self.broker, self.clock)
        self.switch = Switch(self.clock, self.store, self.broker, journal)
        self.containers = FakeContainers()
        self.switch.containers = self.containers  # type: ignore[assignment]
        self.stopped: set[int] = set()
        self.switch.spec_of = self._spec
        self.client = FakePeer()

    def _spec(self, target: int) -> FunctionSpec:
        if target in self.stopped:
            raise NotFoundError("app 'a' is stopped")
        return SPEC

    def container(self, name: str = "ct-1") -> FakePeer:
        peer = self.containers.peers[name] = FakePeer(SimpleNamespace(container_id=name))
        self.switch.spec(TARGET)
        self.switch.perform(self.switch.dispatcher.ready(name, TARGET, 1, self.clock.now))
        return peer

    def call(
        self,
        number: int = 1,
        *,
        flags: int = 0,
        body: bytes = b"args",
        files: tuple[int, ...] = (),
        peer: FakePeer | None = None,
    ) -> bytes:
        call = number.to_bytes(16, "big")
        header = HEADER.unpack(pack(Kind.CALL, flags=flags, number=TARGET, call=call, count=1))
        self.switch.call(peer or self.client, header, body, files)  # type: ignore[arg-type]
        return call

    def answer(
        self, peer: FakePeer, body: bytes = b"value", status: Status = Status.OK, flags: int = Flag.LAST
    ) -> None:
        frame = peer.kinds(Kind.INPUT)[-1][0]
        header = HEADER.unpack(
            pack(Kind.RESULT, flags=flags, status=status, lease=frame[5], call=frame[6], micros=3, count=1)
        )
        self.switch.result(peer.identity.container_id, peer, header, body, ())  # type: ignore[arg-type]

    def results(self, peer: FakePeer | None = None) -> list[tuple[int, bytes]]:
        return [(header[2], body) for header, body in (peer or self.client).kinds(Kind.RESULT)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield Bench(tmp_path)


def memory_of(switch: Switch) -> list[int]:
    tables: list[Any] = [switch._origins, switch._parcels, switch._unclaimed, switch.dispatcher.leases]
    return [len(table) for table in tables]


def test_a_call_goes_to_a_container_and_its_result_comes_back(bench: Bench) -> None:
    container = bench.container()
    call = bench.call()
    ((header, body),) = container.kinds(Kind.INPUT)
    assert (header[6], body) == (call, b"args")
    bench.answer(container)
    assert bench.results() == [(Status.OK, b"value")]
    assert memory_of(bench.switch) == [0, 0, 0, 0]


def test_a_call_waits_for_a_container(bench: Bench) -> None:
    bench.call()
    assert bench.containers.changes == [TARGET]
    container = bench.container()
    bench.answer(container)
    assert bench.results() == [(Status.OK, b"value")]


def test_a_function_of_a_stopped_app_is_refused_and_its_payload_given_back(bench: Bench) -> None:
    bench.stopped.add(TARGET)
    bench.call(flags=Flag.SEGMENT, body=reference(1), files=(memory_file(b"x" * 64),))
    ((status, body),) = bench.results()
    assert status == Status.PLATFORM
    assert json.loads(body)["error"] == "NotFoundError"
    assert len(bench.client.kinds(Kind.RELEASE)) == 1
    assert memory_of(bench.switch) == [0, 0, 0, 0]


def test_a_result_whose_client_is_away_waits_for_it_and_is_delivered_once(bench: Bench) -> None:
    container = bench.container()
    bench.call()
    bench.client.close()
    bench.switch.client_gone(bench.client)  # type: ignore[arg-type]
    bench.answer(container)
    back = FakePeer()
    bench.call(flags=Flag.AGAIN, peer=back)
    assert bench.results(back) == [(Status.OK, b"value")]
    assert len(container.kinds(Kind.INPUT)) == 1
    assert memory_of(bench.switch) == [0, 0, 0, 0]


def test_a_result_that_nobody_claims_is_forgotten_with_its_segment(bench: Bench) -> None:
    before = open_descriptors()
    container = bench.container()
    bench.call()
    bench.client.close()
    bench.switch.client_gone(bench.client)  # type: ignore[arg-type]
    frame = container.kinds(Kind.INPUT)[-1][0]
    header = HEADER.unpack(pack(Kind.RESULT, flags=Flag.LAST | Flag.SEGMENT, lease=frame[5], call=frame[6], count=1))
    bench.switch.result("ct-1", container, header, reference(1), (memory_file(b"x" * 64),))  # type: ignore[arg-type]
    assert container.kinds(Kind.RELEASE) == []
    bench.clock.advance(UNCLAIMED + 1)
    bench.switch.tick()
    assert len(container.kinds(Kind.RELEASE)) == 1
    assert memory_of(bench.switch) == [0, 0, 0, 0]
    bench.broker.peer_gone(container)  # type: ignore[arg-type]
    assert open_descriptors() == before


def test_asking_twice_while_it_runs_runs_it_once_and_the_second_payload_is_given_back(bench: Bench) -> None:
    container = bench.container()
    bench.call()
    back = FakePeer()
    bench.call(flags=Flag.AGAIN | Flag.SEGMENT, body=reference(1), files=(memory_file(b"x" * 64),), peer=back)
    assert len(back.kinds(Kind.RELEASE)) == 1
    bench.answer(container)
    assert len(container.kinds(Kind.INPUT)) == 1
    assert bench.results(back) == [(Status.OK, b"value")]


def test_a_large_payload_stays_until_its_input_is_over_and_is_released_once(bench: Bench) -> None:
    container = bench.container()
    bench.call(flags=Flag.SEGMENT, body=reference(1), files=(memory_file(b"x" * 64),))
    assert bench.client.kinds(Kind.RELEASE) == []
    bench.answer(container)
    bench.broker.released(container, next(iter(container.mapped)))  # type: ignore[arg-type]
    assert len(bench.client.kinds(Kind.RELEASE)) == 1


def test_inputs_of_a_dead_container_run_in_the_next_one(bench: Bench) -> None:
    bench.container("ct-1")
    bench.call()
    del bench.containers.peers["ct-1"]
    bench.switch.perform(bench.switch.dispatcher.lost("ct-1", "it died", bench.clock.now))
    second = bench.container("ct-2")
    bench.answer(second)
    assert bench.results() == [(Status.OK, b"value")]


def test_a_stale_result_changes_nothing(bench: Bench) -> None:
    container = bench.container()
    bench.call()
    bench.answer(container)
    bench.answer(container, b"again")
    assert bench.results() == [(Status.OK, b"value")]


def test_a_generator_streams_and_is_stopped_when_its_reader_goes(bench: Bench) -> None:
    container = bench.container()
    call = bench.call(flags=Flag.STREAM)
    for value in (b"1", b"2"):
        bench.answer(container, value, Status.YIELD, Flag.STREAM)
    assert bench.results() == [(Status.YIELD, b"1"), (Status.YIELD, b"2")]
    bench.switch.credit(HEADER.unpack(pack(Kind.CREDIT, call=call, count=16)))
    assert container.kinds(Kind.CREDIT)[0][0][8] == 16
    bench.client.close()
    bench.switch.client_gone(bench.client)  # type: ignore[arg-type]
    assert len(container.kinds(Kind.CANCEL)) == 1
    assert bench.containers.nudged == ["ct-1"]
    assert bench.switch._origins == {}


def test_an_input_over_its_time_is_asked_to_stop_then_its_container_is_killed(bench: Bench) -> None:
    container = bench.container()
    bench.call()
    bench.clock.advance(11)
    bench.switch.tick()
    assert container.kinds(Kind.TIMEOUT)[0][0][7] == 10_000_000
    assert bench.containers.killed == []
    bench.clock.advance(KILL_GRACE + 1)
    bench.switch.tick()
    assert bench.containers.killed == ["ct-1"]


def test_nothing_of_a_stopped_function_stays_in_memory(bench: Bench) -> None:
    container = bench.container()
    bench.call()
    bench.answer(container)
    bench.call(2)
    bench.stopped.add(TARGET)
    bench.switch.stop_function(TARGET, "the app was stopped")
    assert bench.results()[-1][0] == Status.CANCELLED
    bench.switch.forget_function(TARGET)
    assert TARGET in bench.switch.dispatcher.queues  # its container lives
    bench.switch.perform(bench.switch.dispatcher.lost("ct-1", "stopped", bench.clock.now))
    bench.switch.forget_function(TARGET)
    assert bench.switch.dispatcher.queues == {}
    assert bench.switch.mean_seconds == {}
    assert memory_of(bench.switch) == [0, 0, 0, 0]


def test_the_end_of_a_map_waits_for_its_chunks(bench: Bench) -> None:
    async def main() -> None:
        written = asyncio.Event()

        async def write() -> None:
            await written.wait()

        task = asyncio.ensure_future(write())
        bench.switch.arriving[b"call"] = {task}
        task.add_done_callback(lambda _done: bench.switch.arriving.clear())
        end = asyncio.ensure_future(bench.switch.arrived(b"call"))
        await asyncio.sleep(0)
        assert not end.done()
        written.set()
        await asyncio.wait_for(end, 5)

    asyncio.run(main())
