"""Containers that work on runs: one input each, a grace to save, and a successor in time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fake_peers import FakePeer
from fleet_bench import TARGET, Bench, turns
from test_scaler import scaler_of

from lorry.lifecycle.container import ContainerState
from lorry.model.function import GpuRequest, Resources, ResumePolicy
from lorry.model.records import Status
from lorry.scheduler.load import MachineLoad
from lorry.server.container import Container
from lorry.wire.frames import NO_CALL, Flag, Kind

GRACE = 0.05


def run(tmp_path: Path, test: Callable[[Bench], Coroutine[Any, Any, None]], **spec: Any) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, **{"resumable": ResumePolicy(grace=GRACE), **spec})
        await test(bench)
        for process in bench.sandbox.processes:
            process.end()
        await bench.fleet.settle()
        bench.logs.close_app("ap-1", {})

    asyncio.run(asyncio.wait_for(main(), 10))


async def working(bench: Bench) -> tuple[Container, FakePeer]:
    container = bench.start()
    await turns()
    peer = bench.hello(container)
    bench.call()
    bench.fleet.ready(container)
    return container, peer


def asked(peer: FakePeer) -> list[str]:
    return [json.loads(body)["method"] for _, body in peer.kinds(Kind.REQUEST)]


def answer(bench: Bench, container: Container, peer: FakePeer, status: Status) -> None:
    header, _ = peer.kinds(Kind.INPUT)[-1]
    fields = (Kind.RESULT, Flag.LAST, status, 0, 0, header[5], header[6], 50, 1)
    bench.switch.result(container.container_id, peer, fields, b"{}", ())  # type: ignore[arg-type]


def test_a_container_that_is_stopped_saves_first_and_goes_once_it_has_answered(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        container, peer = await working(bench)
        bench.fleet.stop(container.container_id, "a person stopped it")
        assert asked(peer) == ["yield"]
        assert not bench.sandbox.processes[0].killed
        answer(bench, container, peer, Status.CONTINUE)
        assert asked(peer) == ["yield", "stop"]
        assert container.state is ContainerState.STOPPING
        assert bench.switch.dispatcher.queues[TARGET].waiting == 1
        assert bench.outcomes() == []
        assert not bench.sandbox.processes[0].killed

    run(tmp_path, test)


def test_a_container_that_does_not_answer_is_killed_after_its_grace_and_the_run_is_not_to_blame(
    tmp_path: Path,
) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(4):
            container, _ = await working(bench)
            bench.fleet.stop(container.container_id, "a person stopped it")
            await asyncio.wait_for(container.gone.wait(), 5)
            assert bench.sandbox.processes[-1].killed
        assert bench.outcomes() == []

    run(tmp_path, test)


def test_being_stopped_counts_against_no_run(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(4):
            container, peer = await working(bench)
            bench.fleet.stop(container.container_id, "a person stopped it")
            answer(bench, container, peer, Status.CONTINUE)
        assert bench.outcomes() == []

    run(tmp_path, test)


def test_it_takes_one_input(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.call(2)
        container, peer = await working(bench)
        answer(bench, container, peer, Status.OK)
        assert len(peer.kinds(Kind.INPUT)) == 1
        assert asked(peer) == ["stop"]

    run(tmp_path, test)


def test_only_runs_may_go_on(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        container, peer = await working(bench)
        with pytest.raises(ValueError, match="no run"):
            answer(bench, container, peer, Status.CONTINUE)

    run(tmp_path, test, resumable=None)


def test_a_call_that_is_not_journaled_is_refused(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        header = (Kind.CALL, 0, 0, 0, TARGET, 0, NO_CALL, 0, 1)
        bench.switch.call(bench.client, header, b"args", ())  # type: ignore[arg-type]
        ((status, body),) = bench.outcomes()
        assert status == Status.PLATFORM
        assert b"spawn it" in body

    run(tmp_path, test)


@pytest.mark.parametrize(("gpus", "ending"), [((), 1), ((GpuRequest(model="any"),), 0)])
def test_a_successor_is_started_unless_it_would_wait_for_its_predecessor_s_gpu(
    tmp_path: Path, gpus: tuple[Any, ...], ending: int
) -> None:
    async def test(bench: Bench) -> None:
        scaler = scaler_of(bench, tmp_path)
        await working(bench)
        assert scaler.load(TARGET).ending == 0
        bench.clock.advance(51.0)
        assert scaler.load(TARGET).ending == ending
        scaler.tick()
        await turns()
        assert len(bench.fleet.containers) == 1 + ending

    run(tmp_path, test, timeout=60.0, resources=Resources(gpus=gpus))


@pytest.mark.parametrize(("resumable", "containers"), [(ResumePolicy(), 2), (None, 1)])
def test_a_second_run_does_not_wait_until_the_first_one_leaves_the_cpu_idle(
    tmp_path: Path, resumable: ResumePolicy | None, containers: int
) -> None:
    async def test(bench: Bench) -> None:
        scaler = scaler_of(bench, tmp_path)
        busy = MachineLoad(cores=2, cpu_idle_fraction=0.0, memory_free=100_000, memory_total=100_000)
        scaler._meter.load = lambda: busy  # type: ignore[method-assign]
        await working(bench)
        bench.call(2)
        bench.clock.advance(10.0)
        scaler.tick()
        await turns()
        assert len(bench.fleet.containers) == containers
        scaler.halt()

    run(tmp_path, test, resumable=resumable)


def test_a_place_that_is_free_goes_to_whoever_waits_longest(tmp_path: Path) -> None:
    """Of a run whose slice has just ended, and runs of other functions that waited for its place meanwhile."""

    async def test(bench: Bench) -> None:
        scaler = scaler_of(bench, tmp_path)
        await working(bench)
        bench.clock.advance(51.0)
        scaler._blocked = {7}
        assert scaler.load(TARGET).ending == 0
        woken: list[int] = []
        scaler._wake = woken.append  # type: ignore[method-assign]
        bench.fleet.on_freed = scaler.freed
        bench.fleet.changed = woken.append
        scaler._blocked = {TARGET, 7, 300}
        scaler._backlog_since = {TARGET: 60.0, 7: 20.0, 300: 10.0}
        bench.sandbox.processes[0].end()
        await bench.fleet.settle()
        assert woken == [300, 7, TARGET, TARGET]

    run(tmp_path, test, timeout=60.0)
