"""What `lorry prune` takes, and what it leaves until its time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorry.clock import ManualClock
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy
from lorry.model.records import AppRecord, AppState
from lorry.model.run import RunRecord, RunState
from lorry.server.logs import LogStore
from lorry.server.parcels import Broker, Spool
from lorry.server.retention import Retention
from lorry.server.run_files import RunFiles
from lorry.store.memory import MemoryStore
from lorry.timeouts import ROWS_KEPT
from lorry.wire.codec import to_json


class FakeImages:
    async def sizes(self) -> Any:
        return SimpleNamespace(total=0)

    async def prune(self, _keep: set[str], _unused: float) -> None: ...


def provision() -> Any:
    return SimpleNamespace(
        images=FakeImages(),
        trees=SimpleNamespace(collect=lambda _keep: None),
        held_images=tuple,
        release_images=lambda _alive: None,
        runs=SimpleNamespace(folders=list, remove=lambda _folder: 0),
        blobs=SimpleNamespace(collect=lambda _keep, _older: SimpleNamespace(bytes=0)),
    )


@pytest.mark.parametrize(
    ("everything", "seconds_later", "left"),
    [
        (False, 0.0, {"ap-alive", "ap-stopped"}),
        (False, ROWS_KEPT + 1.0, {"ap-alive"}),
        (True, 0.0, {"ap-alive"}),
    ],
)
def test_logs_of_a_stopped_app_stay_as_long_as_its_rows(
    tmp_path: Path, everything: bool, seconds_later: float, left: set[str]
) -> None:
    async def main() -> None:
        clock, store = ManualClock(), MemoryStore()
        logs = LogStore(tmp_path / "logs", clock, 1)
        for app_id in ("ap-alive", "ap-stopped"):
            record = AppRecord(app_id=app_id, name="n", state=AppState.EPHEMERAL, created_at=clock.wall())
            await store.add_app(record)
            logs.append(app_id, "ct-1", "", 1, ["a line"])
            logs.close_app(app_id, {})
        await store.set_app("ap-stopped", AppState.STOPPED, clock.wall())
        clock.advance(seconds_later)
        apps: Any = SimpleNamespace(alive=lambda: {"ap-alive": store.app("ap-alive")})
        spool = Spool(tmp_path / "spool", Broker())
        retention = Retention(clock, store, apps, logs, spool, provision(), tmp_path / "caches")
        freed = await retention.prune(everything=everything)
        assert logs.sizes().keys() == left
        assert ("logs" in freed) is everything

    asyncio.run(main())


def test_what_a_run_needs_to_be_resumed_stays_as_long_as_its_row(tmp_path: Path) -> None:
    spec = FunctionSpec(
        tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), resumable=ResumePolicy()
    )
    used: list[set[str]] = []
    made = provision()
    made.runs = files = RunFiles(tmp_path / "runs", None)
    made.source = lambda spec: SimpleNamespace(name=f"tree of {spec.tag}")
    made.trees = SimpleNamespace(collect=used.append)
    made.images.digest = digest_of

    async def main() -> None:
        clock, store = ManualClock(), MemoryStore()
        logs = LogStore(tmp_path / "logs", clock, 1)
        await store.add_app(AppRecord(app_id="ap-1", name="a", state=AppState.EPHEMERAL, created_at=clock.wall()))
        number = await store.add_function("ap-1", "f", to_json(spec))
        for name in ("ru-failed", "ru-done"):
            await store.begin_run(run(name, number, clock.wall()), "ct-1", clock.wall())
            files.make(f"a/f/{name}")
            (files.path(f"a/f/{name}") / "chunk").write_bytes(b"x" * 5000)
        files.make("a/f/ru-of-nobody")
        await store.finish_run(b"ru-failed".ljust(16), 0, RunState.FAILED, clock.wall(), "")
        await store.set_app("ap-1", AppState.STOPPED, clock.wall())
        clock.advance(1.0)
        await store.finish_run(b"ru-done".ljust(16), 0, RunState.DONE, clock.wall(), "")
        apps: Any = SimpleNamespace(alive=dict)
        spool = Spool(tmp_path / "spool", Broker())
        retention = Retention(clock, store, apps, logs, spool, made, tmp_path / "caches")
        await retention.prune(everything=True)
        assert used.pop() == {"tree of f"}
        assert sorted(files.folders()) == ["a/f/ru-done", "a/f/ru-failed"]
        clock.advance(ROWS_KEPT - 0.5)
        freed = await retention.prune(everything=False)
        assert freed["runs"] >= 5000
        assert used.pop() == set(), "a run that is done needs no code"
        assert files.folders() == ["a/f/ru-done"]
        assert [app.app_id for app in store.apps()] == ["ap-1"]
        clock.advance(1.0)
        await retention.sweep()
        assert (files.folders(), store.apps()) == ([], [])

    asyncio.run(main())


async def digest_of(_image: Any) -> str:
    return "an image"


def run(name: str, function: int, now: float) -> RunRecord:
    return RunRecord(
        run_id=name,
        app_id="ap-1",
        app_name="a",
        tag="f",
        function=function,
        call=name.encode().ljust(16),
        chunk=0,
        state=RunState.RUNNING,
        created_at=now,
        since=now,
        folder=f"a/f/{name}",
    )
