"""Resuming a run when the disk is full: the run, and nothing else, is there as it was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorry.clock import ManualClock
from lorry.errors import StorageFullError
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy
from lorry.model.records import AppRecord, AppState, CallState
from lorry.model.run import RunRecord, RunState
from lorry.server.api_runs import RunApi
from lorry.server.journal import Journal
from lorry.server.parcels import Broker, Spool
from lorry.server.run_files import KeptInput, RunFiles
from lorry.store.memory import MemoryStore
from lorry.wire.codec import to_json

SPEC = FunctionSpec(
    tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), resumable=ResumePolicy()
)


@pytest.mark.parametrize("batch", [False, True])
def test_a_full_disk_leaves_the_run_as_it_was_and_no_app(tmp_path: Path, batch: bool) -> None:
    async def main() -> None:
        clock, store, broker = ManualClock(), MemoryStore(), Broker()
        files = RunFiles(tmp_path / "runs", None)
        made: list[str] = []
        ended: list[str] = []
        await store.add_app(AppRecord(app_id="ap-1", name="a", state=AppState.STOPPED, created_at=clock.wall()))
        number = await store.add_function("ap-1", "f", to_json(SPEC))
        run = RunRecord(
            run_id="ru-1",
            app_id="ap-1",
            app_name="a",
            tag="f",
            function=number,
            call=bytes(16),
            chunk=0,
            state=RunState.RUNNING,
            created_at=1.0,
            since=1.0,
            folder="a/f/ru-1",
        )
        await store.begin_run(run, "ct-1", 1.0)
        await store.finish_run(run.call, 0, RunState.FAILED, 2.0, "ValueError")
        files.make(run.folder)
        files.keep_input(run.folder, KeptInput(batch=batch), b"input")

        async def create_detached(name: str) -> AppRecord:
            made.append(f"ap-{2 + len(made)}")
            app = AppRecord(app_id=made[-1], name=name, state=AppState.DETACHED, created_at=3.0)
            await store.add_app(app)
            return app

        async def add_function(app: AppRecord, spec: FunctionSpec, text: str) -> int:
            return await store.add_function(app.app_id, spec.tag, text)

        async def full(*_: Any) -> None:
            raise StorageFullError("no space left")

        apps: Any = SimpleNamespace(
            create_detached=create_detached, add_function=add_function, end_when_done=ended.append
        )
        journal = Journal(store, Spool(tmp_path / "spool", broker), broker, clock)
        journal.accept_spawn = journal.accept_chunk = full  # type: ignore[assignment,method-assign]
        runs: Any = SimpleNamespace(files=files, attempt_at=lambda _run: None)
        provision: Any = SimpleNamespace(refuse=lambda _spec: None)
        nothing: Any = None
        api = RunApi(clock, store, apps, nothing, journal, broker, provision, runs)
        for _ in range(2):
            with pytest.raises(StorageFullError):
                await api.run_resume(nothing, {"run": "ru-1"}, 1)
        found = store.run("ru-1")
        assert (found.state, found.error) == (RunState.FAILED, "ValueError")
        assert ended == made == ["ap-2", "ap-3"]
        assert {call.state for app in made for call in store.calls(app)} <= {CallState.CANCELLED}

    asyncio.run(main())
