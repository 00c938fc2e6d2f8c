from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorry.store.interface import Store
from lorry.store.memory import MemoryStore
from lorry.store.sqlite import SqliteStore


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Store = SqliteStore.open(tmp_path / "state.db", 100.0) if request.param == "sqlite" else MemoryStore()
    yield opened
    opened.close()
