"""The writer thread: shared commits, isolated verbs, and a loud end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from lorry.errors import InternalError, NotFoundError, ResourceError
from lorry.store.writer import Writer


class Tapped:
    """A connection that counts statements and fails those that a test names."""

    def __init__(self, path: Path, failures: dict[str, BaseException] | None = None) -> None:
        self._connection = apsw.Connection(str(path))
        self._connection.execute("CREATE TABLE IF NOT EXISTS t (x INTEGER)")
        self.statements: list[str] = []
        self.failures = failures or {}

    def execute(self, sql: str, *bindings: Any) -> Any:
        self.statements.append(sql)
        if sql in self.failures:
            raise self.failures[sql]
        return self._connection.execute(sql, *bindings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def insert(number: int) -> Any:
    return lambda db: db.execute("INSERT INTO t VALUES (?)", (number,)) and number


def numbers(path: Path) -> list[int]:
    connection = apsw.Connection(str(path))
    found = [x for (x,) in connection.execute("SELECT x FROM t ORDER BY rowid").fetchall()]
    connection.close()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


def test_verbs_that_wait_together_share_a_commit(path: Path) -> None:
    tapped, gate = Tapped(path), threading.Event()
    writer = Writer(tapped)

    async def scenario() -> list[Any]:
        first = writer.submit(lambda db: gate.wait(10))
        others = [writer.submit(insert(number)) for number in range(100)]
        gate.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(scenario()) == [True, *range(100)]
    assert tapped.statements.count("COMMIT") <= 2
    writer.close()
    assert numbers(path) == list(range(100))


def test_a_verb_that_raises_undoes_itself_alone(path: Path) -> None:
    def half_done(error: Exception) -> Any:
        def verb(db: Any) -> None:
            db.execute("INSERT INTO t VALUES (-1)")
            raise error

        return verb

    async def scenario() -> list[Any]:
        verbs = [insert(1), half_done(NotFoundError("no call")), half_done(TypeError("odd")), insert(2)]
        return await asyncio.gather(*map(writer.submit, verbs), return_exceptions=True)

    writer = Writer(Tapped(path))
    one, missing, odd, two = asyncio.run(scenario())
    assert (one, two) == (1, 2)
    assert isinstance(missing, NotFoundError)
    assert isinstance(odd, InternalError)
    assert isinstance(odd.__cause__, TypeError)
    writer.close()
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize("moment", ["BEGIN IMMEDIATE", "COMMIT", "RELEASE verb"])
def test_when_the_thread_dies_every_write_fails_loudly(
    path: Path, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    tapped, gate = Tapped(path), threading.Event()
    tapped.failures[moment] = apsw.CorruptError("database disk image is malformed")
    writer = Writer(tapped)

    async def scenario() -> list[Any]:
        pending = [writer.submit(lambda db: gate.wait(10)), *(writer.submit(insert(n)) for n in range(5))]
        gate.set()
        outcomes = await asyncio.gather(*pending, return_exceptions=True)
        late = await asyncio.gather(writer.submit(insert(9)), return_exceptions=True)
        return outcomes + late

    outcomes = asyncio.run(scenario())
    assert len(outcomes) == 7
    assert {type(outcome) for outcome in outcomes} == {InternalError}
    assert "malformed" in str(outcomes[-1])
    assert "writer thread failed" in caplog.text
    writer.close()
    assert numbers(path) == []


def test_a_locked_database_fails_the_batch_and_no_more(path: Path) -> None:
    tapped = Tapped(path, {"BEGIN IMMEDIATE": apsw.BusyError("database is locked")})
    writer = Writer(tapped)

    async def scenario() -> None:
        with pytest.raises(ResourceError, match="locked"):
            await writer.submit(insert(1))
        tapped.failures.clear()
        assert await writer.submit(insert(2)) == 2

    asyncio.run(scenario())
    writer.close()
    assert numbers(path) == [2]


def test_what_is_queued_is_written_before_close_returns(path: Path) -> None:
    async def scenario() -> None:
        for number in range(50):
            writer.submit(insert(number))
        writer.close()
        writer.close()
        with pytest.raises(RuntimeError, match="closed"):
            writer.submit(insert(99))

    writer = Writer(Tapped(path))
    asyncio.run(scenario())
    assert numbers(path) == list(range(50))


def test_nobody_has_to_wait_for_a_write(path: Path) -> None:
    async def leave() -> None:
        writer.submit(insert(1)).cancel()
        writer.submit(insert(2))  # its loop is closed before it is written, or just after

    async def stay() -> int:
        return await writer.submit(insert(3))

    writer = Writer(Tapped(path))
    asyncio.run(leave())
    assert asyncio.run(stay()) == 3
    writer.close()
    assert numbers(path) == [1, 2, 3]


def test_the_log_is_copied_back_when_it_is_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorry.store.writer.CHECKPOINT_PAGES", 1)
    tapped = Tapped(path)
    tapped.execute("PRAGMA journal_mode = WAL")
    tapped.execute("PRAGMA wal_autocheckpoint = 0")
    copied: list[int] = []
    monkeypatch.setattr(
        tapped,
        "wal_checkpoint",
        lambda mode: copied.append(mode) or tapped._connection.wal_checkpoint(mode=mode),
        raising=False,
    )
    writer = Writer(tapped)
    asyncio.run(_one(writer))
    writer.close()
    assert copied == [apsw.SQLITE_CHECKPOINT_PASSIVE]


async def _one(writer: Writer) -> None:
    await writer.submit(insert(1))
