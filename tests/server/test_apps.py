"""The states of apps: who may ask for what, and what ends with its client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fleet_bench import Bench, turns

from lorry.errors import InvalidError, NotFoundError, ResourceError, StorageFullError
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.model.records import AppState, CallKind
from lorry.scheduler.inventory import Inventory
from lorry.server.apps import Apps
from lorry.server.journal import new_call
from lorry.server.machine import LoadMeter
from lorry.server.scaler import Scaler
from lorry.wire.codec import to_json

SPEC = to_json(FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f")))


class AppBench(Bench):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        inventory = Inventory(cores=2, memory_mib=1000)
        meter = LoadMeter(inventory, root)
        scaler = Scaler(self.clock, self.store, self.switch, self.fleet, inventory, meter)
        journal = self.switch._journal
        self.parts = (self.clock, self.store, self.switch, journal, self.fleet, scaler, self.logs)
        self.apps = Apps(*self.parts)
        self.client = subprocess.Popen(["sleep", "60"])  # type: ignore[assignment]

    async def deployed(self) -> str:
        app = await self.apps.create("a", self.client.pid, deploys=True)  # type: ignore[attr-defined]
        await self.apps.add_functions(app.app_id, [SPEC])
        await self.apps.deploy(app.app_id)
        return app.app_id

    async def running(self) -> str:
        return (await self.apps.create("a", self.client.pid, deploys=False)).app_id  # type: ignore[attr-defined]

    async def kill_client(self) -> None:
        os.kill(self.client.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        await asyncio.to_thread(self.client.wait)  # type: ignore[attr-defined]
        await asyncio.sleep(0.02)  # until the pidfd has told
        await asyncio.gather(*self.apps._stopping.values())

    def state(self, app_id: str) -> AppState:
        return self.store.app(app_id).state


def run(tmp_path: Path, test: Callable[[AppBench], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        bench = AppBench(tmp_path)
        try:
            await test(bench)
        finally:
            bench.client.kill()  # type: ignore[attr-defined]
            bench.client.wait()  # type: ignore[attr-defined]

    asyncio.run(asyncio.wait_for(main(), 20))


def test_an_app_ends_with_its_client(tmp_path: Path) -> None:
    async def test(bench: AppBench) -> None:
        app = await bench.running()
        await bench.kill_client()
        assert bench.state(app) is AppState.STOPPED
        assert bench.apps.alive() == {}

    run(tmp_path, test)


@pytest.mark.parametrize("refusal", [StorageFullError("full"), ResourceError("locked")])
def test_an_app_is_stopped_although_the_database_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    async def refused(*_: Any) -> None:
        raise refusal

    async def test(bench: AppBench) -> None:
        app = await bench.deployed()
        (function,) = bench.store.functions(app)
        monkeypatch.setattr(bench.store, "set_app", refused)
        await bench.apps.stop(app, "a person stopped it")
        assert bench.apps.alive() == {}
        assert function.number not in bench.switch.dispatcher.queues

    run(tmp_path, test)


def test_a_deployment_whose_client_dies_before_it_is_complete_is_none(tmp_path: Path) -> None:
    async def test(bench: AppBench) -> None:
        first = await bench.deployed()
        half = await bench.apps.create("a", bench.client.pid, deploys=True)  # type: ignore[attr-defined]
        await bench.apps.add_functions(half.app_id, [SPEC])
        found = bench.store.deployment("a")
        assert found is not None
        assert found.app_id == first
        await bench.kill_client()
        assert bench.state(half.app_id) is AppState.STOPPED
        assert bench.state(first) is AppState.DEPLOYED
        assert list(bench.apps.alive()) == [first]

    run(tmp_path, test)


def test_detached_and_deployed_apps_outlive_their_client(tmp_path: Path) -> None:
    async def test(bench: AppBench) -> None:
        deployed, detached = await bench.deployed(), await bench.running()
        bench.apps._busy = lambda _app_id: True  # type: ignore[method-assign]
        await bench.apps.detach(detached)
        await bench.kill_client()
        assert bench.state(deployed) is AppState.DEPLOYED
        assert bench.state(detached) is AppState.DETACHED
        for task in bench.apps._retiring:
            task.cancel()

    run(tmp_path, test)


def test_a_request_that_the_table_does_not_have_is_the_client_s_error(tmp_path: Path) -> None:
    async def test(bench: AppBench) -> None:
        deployed, running = await bench.deployed(), await bench.running()
        with pytest.raises(InvalidError, match="is deployed: it cannot detach"):
            await bench.apps.detach(deployed)
        await bench.apps.deploy(deployed)  # asked again after a lost connection
        with pytest.raises(InvalidError, match="no version"):
            await bench.apps.deploy(running)
        assert bench.state(deployed) is AppState.DEPLOYED
        assert bench.state(running) is AppState.EPHEMERAL
        await bench.apps.stop(deployed, "a test")
        with pytest.raises(NotFoundError, match="is stopped"):
            await bench.apps.deploy(deployed)

    run(tmp_path, test)


def test_an_app_that_is_stopped_while_it_is_being_detached_stays_stopped(tmp_path: Path) -> None:
    async def test(bench: AppBench) -> None:
        app = await bench.running()
        written = asyncio.Event()
        set_app = bench.store.set_app

        async def slowly(app_id: str, state: AppState, stopped_at: float | None = None) -> None:
            await set_app(app_id, state, stopped_at)
            if state is AppState.DETACHED:
                await written.wait()

        bench.store.set_app = slowly  # type: ignore[method-assign, assignment]
        detaching = asyncio.ensure_future(bench.apps.detach(app))
        await turns()
        await bench.apps.stop(app, "a person stopped it")
        written.set()
        with pytest.raises(NotFoundError):
            await detaching
        assert bench.state(app) is AppState.STOPPED
        assert bench.apps.alive() == {}

    run(tmp_path, test)


def test_an_older_version_completes_what_it_began_and_never_answers_by_name_again(tmp_path: Path) -> None:
    async def test(bench: AppBench) -> None:
        first = await bench.deployed()
        journal, (function,) = bench.switch._journal, bench.store.functions(first)
        call = new_call(b"c" * 16, first, function.number, CallKind.MAP, bench.clock.wall(), None, True)
        await journal.open_call(call)
        second = await bench.deployed()
        await bench.apps.stop(second, "a person stopped it")
        assert bench.state(first) is AppState.DETACHED
        assert bench.store.deployment("a") is None

        again = Apps(*bench.parts)  # the worker starts anew
        again.recover()
        again.recover_clients()
        await asyncio.sleep(0)
        assert [record.app_id for record in again.alive().values()] == [first]
        await journal.cancel(call.call)
        await asyncio.gather(*again._retiring)
        assert bench.state(first) is AppState.STOPPED

    run(tmp_path, test)


def test_a_newer_version_replaces_the_older_one(tmp_path: Path) -> None:
    async def test(bench: AppBench) -> None:
        first = await bench.deployed()
        second = await bench.deployed()
        await asyncio.gather(*bench.apps._retiring)
        assert bench.state(first) is AppState.STOPPED
        assert bench.state(second) is AppState.DEPLOYED

    run(tmp_path, test)
