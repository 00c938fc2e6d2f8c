"""Resuming a run when the disk is full, or the server dies meanwhile: the run is there as it was, or goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lorry.clock import ManualClock
from lorry.errors import StorageFullError
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy
from lorry.model.records import AppRecord, AppState, CallKind, CallState
from lorry.model.run import RunRecord, RunState
from lorry.scheduler.dispatch import Work
from lorry.server.api_runs import RunApi
from lorry.server.journal import Journal
from lorry.server.parcels import Broker, Spool
from lorry.server.run_files import KeptInput, RunFiles
from lorry.store.memory import MemoryStore
from lorry.wire.codec import to_json

SPEC = FunctionSpec(
    tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), resumable=ResumePolicy()
)


class Bench:
    """A run that has failed, and the API that resumes it."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.store, broker = ManualClock(), MemoryStore(), Broker()
        self.made: list[str] = []
        self.ended: list[str] = []
        self.submitted: list[Work] = []
        self.files = RunFiles(folder / "runs", None)
        apps: Any = SimpleNamespace(
            create_detached=self._create, add_function=self._add, end_when_done=self.ended.append
        )
        self.journal = Journal(self.store, Spool(folder / "spool", broker), broker, self.clock)
        runs: Any = SimpleNamespace(files=self.files, attempt_at=lambda _run: None, resumed=lambda _run: None)
        switch: Any = SimpleNamespace(submit=lambda work, _parcel: self.submitted.append(work))
        provision: Any = SimpleNamespace(refuse=lambda _spec: None)
        self.api = RunApi(self.clock, self.store, apps, switch, self.journal, broker, provision, runs)

    async def fail(self, *, batch: bool) -> None:
        await self.store.add_app(
            AppRecord(app_id="ap-1", name="a", state=AppState.STOPPED, created_at=self.clock.wall())
        )
        run = RunRecord(
            run_id="ru-1",
            app_id="ap-1",
            app_name="a",
            tag="f",
            function=await self.store.add_function("ap-1", "f", to_json(SPEC)),
            call=bytes(16),
            chunk=0,
            state=RunState.RUNNING,
            created_at=1.0,
            since=1.0,
            folder="a/f/ru-1",
        )
        await self.store.begin_run(run, "ct-1", 1.0)
        await self.store.finish_run(run.call, 0, RunState.FAILED, 2.0, "ValueError")
        self.files.make(run.folder)
        self.files.keep_input(run.folder, KeptInput(batch=batch), b"input")

    async def resume(self) -> None:
        await self.api.run_resume(cast("Any", None), {"run": "ru-1"}, 1)

    async def _create(self, name: str) -> AppRecord:
        self.made.append(f"ap-{2 + len(self.made)}")
        app = AppRecord(app_id=self.made[-1], name=name, state=AppState.DETACHED, created_at=3.0)
        await self.store.add_app(app)
        return app

    async def _add(self, app: AppRecord, spec: FunctionSpec, text: str) -> int:
        return await self.store.add_function(app.app_id, spec.tag, text)


@pytest.mark.parametrize("batch", [False, True])
def test_a_full_disk_leaves_the_run_as_it_was_and_no_app(tmp_path: Path, batch: bool) -> None:
    async def full(*_: Any) -> None:
        raise StorageFullError("no space left")

    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.fail(batch=batch)
        bench.journal.accept_spawn = full  # type: ignore[assignment,method-assign]
        for _ in range(2):
            with pytest.raises(StorageFullError):
                await bench.resume()
        found = bench.store.run("ru-1")
        assert (found.state, found.error) == (RunState.FAILED, "ValueError")
        assert bench.ended == bench.made == ["ap-2", "ap-3"]
        assert not [call for app in bench.made for call in bench.store.calls(app)]

    asyncio.run(main())


class Died(BaseException):
    """The server, right after a write."""


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("verb", ["resume_run", "open_call", "accept_spawn", "accept_chunk"])
def test_a_run_whose_resume_the_server_did_not_survive_has_its_input_or_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, batch: bool
) -> None:
    """A call without its input would be waited for, and one that is open is not the run's alone."""

    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.fail(batch=batch)
        write = getattr(bench.store, verb)

        async def dies(*arguments: Any) -> None:
            await write(*arguments)
            raise Died

        monkeypatch.setattr(bench.store, verb, dies)
        try:
            await bench.resume()
        except Died:
            assert not bench.submitted
        waiting = [(call.kind, call.state, chunk) for call, chunk, *_ in bench.store.unfinished()]
        kind = CallKind.MAP if batch else CallKind.SPAWN
        assert waiting == [(kind, CallState.CLOSED, 0)] or not bench.store.calls(bench.made[0])

    asyncio.run(main())
