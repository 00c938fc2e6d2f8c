"""What `lorry prune` takes, and what it leaves until its time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorry.clock import ManualClock
from lorry.model.records import AppRecord, AppState
from lorry.server.logs import LogStore
from lorry.server.parcels import Broker, Spool
from lorry.server.retention import Retention
from lorry.store.memory import MemoryStore
from lorry.timeouts import ROWS_KEPT


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
