"""What the autoscaler is told about a function's load."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fleet_bench import TARGET, Bench, turns

from lorry.lifecycle.container import ContainerState
from lorry.model.function import Scaling
from lorry.model.records import Status
from lorry.scheduler.inventory import Inventory
from lorry.server.machine import LoadMeter
from lorry.server.scaler import Scaler
from lorry.wire.frames import Flag, Kind


def scaler_of(bench: Bench, folder: Path) -> Scaler:
    inventory = Inventory(cores=2, memory_mib=100_000)
    scaler = Scaler(bench.clock, bench.store, bench.switch, bench.fleet, inventory, LoadMeter(inventory, folder))
    bench.fleet.changed = scaler.changed
    scaler.apps[TARGET] = ("ap-1", True)
    return scaler


def test_a_short_queue_is_short_however_long_ago_there_was_another_one(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        scaler = scaler_of(bench, tmp_path)
        bench.switch.mean_seconds[TARGET] = 50e-6
        container = bench.start()
        await turns()
        peer = bench.hello(container)
        bench.fleet.ready(container)
        done = 0

        async def finish_all() -> None:
            nonlocal done
            while len(peer.kinds(Kind.INPUT)) > done:
                header, _ = peer.kinds(Kind.INPUT)[done]
                fields = (Kind.RESULT, Flag.LAST, Status.OK, 0, 0, header[5], header[6], 50, 1)
                bench.switch.result(container.container_id, peer, fields, b"x", ())  # type: ignore[arg-type]
                done += 1
            await turns()

        bench.call(1)
        bench.call(2)  # waits: the first queue
        await turns()
        assert scaler.load(TARGET).backlog_since == bench.clock.monotonic()
        await finish_all()
        bench.clock.advance(10.0)
        bench.call(3)
        bench.call(4)  # waits: the second queue, ten seconds later
        await turns()
        assert scaler.load(TARGET).backlog_since == bench.clock.monotonic()
        assert "done before a new container is ready" in scaler.pending[TARGET]
        assert len(bench.fleet.containers) == 1
        await finish_all()
        for process in bench.sandbox.processes:
            process.end()
        assert container.state is ContainerState.READY
        await bench.fleet.settle()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_an_idle_container_costs_one_timer_however_long_it_may_stay(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, scaling=Scaling(scaledown_window=86_400.0))
        scaler = scaler_of(bench, tmp_path)
        timers: list[asyncio.TimerHandle] = []
        loop = asyncio.get_running_loop()

        def call_later(delay: float, *work: Any) -> asyncio.TimerHandle:
            timers.append(loop.call_later(delay, *work))
            return timers[-1]

        scaler._loop = SimpleNamespace(call_later=call_later, call_soon=loop.call_soon)  # type: ignore[assignment]
        container = bench.start()
        await turns()
        bench.hello(container)
        bench.fleet.ready(container)
        for _ in range(100):
            bench.clock.advance(0.25)
            scaler.tick()
            await turns(2)
        assert len(timers) >= 100  # it was decided each time, and wanted to be asked again
        assert sum(not timer.cancelled() for timer in timers) == 1
        scaler.forget_function(TARGET)
        assert all(timer.cancelled() for timer in timers)
        for process in bench.sandbox.processes:
            process.end()
        await bench.fleet.settle()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_server_that_stops_starts_no_container_for_what_still_comes(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        scaler = scaler_of(bench, tmp_path)
        container = bench.start()
        await turns()
        bench.hello(container)
        bench.fleet.ready(container)
        bench.call(1)
        scaler.halt()
        bench.fleet.stop(container.container_id, "the server was stopped")
        bench.call(2)
        bench.sandbox.processes[0].end()
        await asyncio.wait_for(bench.fleet.settle(), 5)
        assert bench.fleet.containers == {}
        assert bench.switch.dispatcher.queues[TARGET].waiting == 2

    asyncio.run(asyncio.wait_for(main(), 10))
