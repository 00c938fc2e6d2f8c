"""Containers through their lives, with a sandbox that tests hold in their hands."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fake_peers import FakePeer, open_descriptors
from fleet_bench import TARGET, Bench, turns

from lorry import errors
from lorry.lifecycle.container import ContainerState
from lorry.model.function import FunctionKind, Resources
from lorry.model.records import Status
from lorry.sandbox.interface import Exit
from lorry.server.boots import MAX_BOOT_DEATHS
from lorry.server.container import Container, death_text
from lorry.wire.frames import Kind


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


def test_a_full_disk_does_not_lose_sight_of_a_container_that_has_started(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        container = bench.start()
        (tmp_path / "started" / container.container_id).symlink_to("/dev/full")
        await turns()
        bench.hello(container)
        bench.fleet.ready(container)
        bench.sandbox.processes[0].end(0)
        await asyncio.wait_for(container.gone.wait(), 5)

    run(tmp_path, test)


@pytest.mark.parametrize("kind", [FunctionKind.FUNCTION, FunctionKind.SANDBOX])
def test_no_timer_keeps_a_container_that_has_ended(tmp_path: Path, kind: FunctionKind) -> None:
    """A sandbox may have a time-out of a year."""

    async def test(bench: Bench) -> None:
        bench.spec = dataclasses.replace(bench.spec, kind=kind, timeout=31e6)
        container = bench.start()
        while container.process is None:
            await asyncio.sleep(0)
        if kind is FunctionKind.FUNCTION:
            bench.hello(container)
            bench.fleet.ready(container)
            bench.fleet.stop(container.container_id, "a test wants it", within=1000)
        bench.sandbox.processes[0].end(0)
        await container.gone.wait()
        await bench.fleet.settle()
        name = container.container_id
        del container
        gc.collect()
        assert [o for o in gc.get_objects() if isinstance(o, Container) and o.container_id == name] == []

    gc.collect()  # what other tests have left would else be closed in this one
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


def test_a_death_for_memory_names_the_limit_or_says_that_it_was_the_machine_s(tmp_path: Path) -> None:
    ended = Exit(code=137, signal=9, oom_killed=True, peak_memory=90)

    async def own(bench: Bench) -> None:
        text = death_text(bench.start(), ended, "it was killed")
        assert text.startswith("OutOfMemoryError: the container passed its memory limit of 64 MiB")
        await turns()

    async def machine(bench: Bench) -> None:
        assert death_text(bench.start(), ended, "it was killed").startswith("OutOfMemoryError: the machine ran out")
        await turns()

    run(tmp_path, own, resources=Resources(memory=32, memory_limit=64))
    run(tmp_path, machine)


def test_a_container_whose_process_is_not_known_is_not_taken_over(tmp_path: Path) -> None:
    """The worker died between the container's first words and the launcher's: its row has no pid. A pid of 0 raises."""

    async def test(bench: Bench) -> None:
        record = dataclasses.replace(bench.start().record(), pid=0)
        assert not bench.fleet.recover(record, bench.spec)
        await turns()

    run(tmp_path, test)
