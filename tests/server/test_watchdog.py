"""Limits that the kernel does not hold: who is killed, and what its inputs are told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fleet_bench import Bench, turns

from lorry.model.function import Resources, RetryPolicy
from lorry.model.records import Status
from lorry.sandbox.interface import Usage
from lorry.server.container import Container
from lorry.server.watchdog import Watchdog


def on(tmp_path: Path, test: Callable[[Bench], Coroutine[Any, Any, None]], **spec: Any) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, **spec)
        try:
            await test(bench)
        finally:
            for process in bench.sandbox.processes:
                process.end()
            await bench.fleet.settle()
            bench.logs.close_app("ap-1", {})

    asyncio.run(main())


async def busy(bench: Bench) -> Container:
    """A container with one input."""
    container = bench.start()
    while container.process is None:
        await asyncio.sleep(0)
    bench.hello(container)
    bench.fleet.ready(container)
    bench.call()
    return container


def uses(container: Container, memory: int) -> None:
    container.process.usage = lambda: Usage(cpu_seconds=0, memory=memory, peak_memory=memory)  # type: ignore


async def killed(bench: Bench, container: Container) -> None:
    await Watchdog(bench.fleet).look()
    assert container.process.killed  # type: ignore[union-attr]
    await container.gone.wait()
    await turns()


def test_memory_over_the_limit_ends_like_an_oom_kill(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(2):  # the second time it is alone again, and the input is given up
            container = await busy(bench)
            uses(container, 100)
            await Watchdog(bench.fleet).look()
            assert not container.process.killed  # type: ignore[union-attr]
            uses(container, 101)
            await killed(bench, container)
        ((status, text),) = bench.outcomes()
        assert status == Status.LOST
        assert b'"OutOfMemoryError"' in text
        assert b"limit of 100 MiB (peak 101 MiB)" in text

    on(tmp_path, test, resources=Resources(memory=50, memory_limit=100))


def test_memory_backoff_holds_here_too(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        container = await busy(bench)
        uses(container, 101)
        await killed(bench, container)
        assert bench.outcomes() == []
        assert bench.fleet.memory.spec(container.target, bench.spec).resources.memory_limit == 300

    grows = RetryPolicy(max_retries=1, memory_backoff=3.0)
    on(tmp_path, test, resources=Resources(memory=50, memory_limit=100), retries=grows)


def test_scratch_over_the_limit_is_named_with_what_there_was(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for _ in range(2):
            container = await busy(bench)
            for name in ("home", "tmp"):
                (container.folder / name).mkdir()
                (container.folder / name / "data").write_bytes(os.urandom(1 << 20))
            await killed(bench, container)
        ((status, text),) = bench.outcomes()
        assert status == Status.LOST
        assert b'"ResourceError"' in text
        assert b"had 2 MiB in its home and /tmp, more than ephemeral_disk=1." in text

    on(tmp_path, test, resources=Resources(ephemeral_disk=1))


def test_without_a_limit_nobody_is_looked_at(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        container = await busy(bench)
        container.process.usage = None  # type: ignore
        await Watchdog(bench.fleet).look()
        assert not container.process.killed  # type: ignore[union-attr]
        container.process.usage = lambda: Usage(cpu_seconds=0, memory=1, peak_memory=1)  # type: ignore

    on(tmp_path, test)
