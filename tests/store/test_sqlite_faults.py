"""What only a file can suffer: a killed writer, a full disk, a torn log, newer code, network file systems."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest
from store_records import app, call, call_id, chunk, result, wait

from lorry.errors import InternalError, InvalidError, NotFoundError, StorageFullError, VersionError
from lorry.store import sqlite_retention
from lorry.store.filesystem import filesystem_magic, refuse_network_filesystem
from lorry.store.sqlite import SqliteStore

SPAWNER = """
import asyncio, os, sys
from pathlib import Path
from store_records import call, call_id, chunk
from lorry.store.sqlite import SqliteStore

async def spawn(store, lane):
    number = lane
    while True:
        assert await store.accept_spawn(call(number), chunk(number, payload=b"p" * 3000))
        os.write(1, b"%d\\n" % number)
        number += 16

async def main():
    store = SqliteStore.open(Path(sys.argv[1]), 1.0)
    await asyncio.gather(*(spawn(store, lane) for lane in range(1, 17)))

asyncio.run(main())
"""

FILLER = """
import asyncio, resource, signal, sys
from pathlib import Path
from store_records import call, call_id, chunk
from lorry.errors import StorageFullError
from lorry.store.sqlite import SqliteStore

async def main():
    store = SqliteStore.open(Path(sys.argv[1]), 1.0)
    await store.open_call(call())
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    kept, number = [], 0
    while True:
        batch = range(number, number + 4)
        number += 4
        outcomes = await asyncio.gather(
            *(store.accept_chunk(chunk(number=n, payload=b"p" * 60_000)) for n in batch),
            return_exceptions=True)
        if all(outcome is True for outcome in outcomes):
            kept += batch
            continue
        assert all(isinstance(outcome, StorageFullError) for outcome in outcomes), outcomes
        break
    assert [n for _, n, *_ in store.unfinished()] == kept
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert await store.accept_chunk(chunk(number=batch[0], payload=b"p" * 60_000))
    kept.append(batch[0])
    store.close()
    print(len(kept))

asyncio.run(main())
"""


def environment() -> dict[str, str]:
    """Children import what this process can import."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def reopened(path: Path) -> SqliteStore:
    store = SqliteStore.open(path, 200.0)
    assert apsw.Connection(str(path)).execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_a_killed_writer_loses_nothing_that_it_acknowledged(path: Path) -> None:
    command = [sys.executable, "-c", SPAWNER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(800)]
        child.send_signal(signal.SIGKILL)
        # What the pipe still holds was acknowledged too; the last line may be half written.
        acknowledged += [int(line) for line in child.stdout if line.endswith(b"\n")]
    store = reopened(path)
    assert store.epoch == 2
    for number in acknowledged:
        assert store.chunk(call_id(number), 0).payload == b"p" * 3000
        assert store.call(call_id(number)).inputs == 4
    store.close()


def test_a_full_disk_fails_the_batch_and_the_store_recovers(path: Path) -> None:
    # A file size limit makes writes fail as a full disk does, without a mount and so without root.
    command = [sys.executable, "-c", FILLER, str(path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    store = reopened(path)
    assert len(list(store.unfinished())) == int(done.stdout) > 4
    store.close()


def test_a_database_that_may_not_grow_says_full(path: Path) -> None:
    store = SqliteStore.open(path, 100.0)
    wait(store.open_call, call())
    wait(store._write, lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())
    with pytest.raises(StorageFullError, match="lorry prune"):
        wait(store.accept_chunk, chunk(payload=b"p" * 60_000))
    with pytest.raises(NotFoundError):
        store.chunk(call_id(1), 0)
    wait(store._write, lambda db: db.execute("PRAGMA max_page_count = 100000").fetchall())
    assert wait(store.accept_chunk, chunk(payload=b"p" * 60_000))
    store.close()


@pytest.mark.parametrize("lost", [1, 30, 4096, 9_000])
@pytest.mark.parametrize("tail", ["cut", "garbage"])
def test_a_torn_log_tail_loses_only_the_last_commits(path: Path, tmp_path: Path, lost: int, tail: str) -> None:
    store = SqliteStore.open(path, 100.0)
    wait(store.open_call, call())
    for number in range(8):
        wait(store.accept_chunk, chunk(number=number, payload=b"p" * 20_000))
    torn = tmp_path / "torn"
    torn.mkdir()
    for file in (path, path.with_name("state.db-wal")):
        shutil.copy(file, torn)
    store.close()
    log = torn / "state.db-wal"
    whole = log.read_bytes()
    log.write_bytes(whole[:-lost] + (b"\xa5" * lost if tail == "garbage" else b""))
    found = reopened(torn / "state.db")
    chunks = [number for _, number, *_ in found.unfinished()]
    assert chunks == list(range(len(chunks)))
    assert 6 <= len(chunks) < 8
    assert found.call(call_id(1)).inputs == 4 * len(chunks)
    assert wait(found.accept_chunk, chunk(number=7))
    found.close()


def test_each_opening_starts_an_epoch_and_finds_what_was_written(path: Path) -> None:
    for epoch in (1, 2, 3):
        store = SqliteStore.open(path, 100.0)
        assert store.epoch == epoch
        wait(store.add_app, app(epoch))
        assert len(store.apps()) == epoch
        store.close()


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    SqliteStore.open(path, 100.0).close()
    with apsw.Connection(str(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(VersionError, match=r"schema 99.*LORRY_STATE_DIR"):
        SqliteStore.open(path, 100.0)
    connection = apsw.Connection(str(path))
    assert connection.execute("SELECT epoch FROM meta").fetchall() == [(1,)]
    connection.close()


def test_what_is_no_database_is_an_error_with_a_sentence(path: Path) -> None:
    path.write_bytes(b"not a database, just text " * 100)
    with pytest.raises(InternalError, match="state database"):
        SqliteStore.open(path, 100.0)


def test_the_pragmas_that_the_promises_rest_on_are_set(path: Path) -> None:
    store = SqliteStore.open(path, 100.0)
    names = ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint", "auto_vacuum")
    ask = [wait(store._write, lambda db, name=name: db.pragma(name)) for name in names]
    assert ask == ["wal", 2, 1, 0, 2]
    with pytest.raises(apsw.ReadOnlyError):
        store._reader.execute("DELETE FROM app")
    store.close()


def test_the_schema_itself_refuses_a_second_result(path: Path) -> None:
    store = SqliteStore.open(path, 100.0)
    wait(store.open_call, call())
    wait(store.accept_chunk, chunk())
    wait(store.record_results, [result(indices=((0, 3),))])
    with pytest.raises(InternalError, match="CHECK"):
        wait(store._write, lambda db: db.execute('UPDATE chunk SET "left" = "left" - 2'))
    store.close()


def test_expiry_goes_in_batches_and_gives_space_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_retention, "BATCH", 3)
    monkeypatch.setattr(sqlite_retention, "LEAST_FREE_PAGES", 16)
    store = SqliteStore.open(path, 100.0)

    async def fill() -> None:
        await store.open_call(call())
        await asyncio.gather(*(store.accept_chunk(chunk(number=n, payload=b"p" * 40_000)) for n in range(20)))
        await store.cancel_call(call_id(1), 150.0)

    asyncio.run(fill())
    wait(store._write, lambda db: db.execute("PRAGMA page_count").fetchall())
    assert wait(store.expire, calls_before=200.0, rows_before=0.0) == 21
    ((pages,),) = wait(store._write, lambda db: db.execute("PRAGMA page_count").fetchall())
    assert pages < 100
    store.close()


@pytest.mark.parametrize(
    ("magic", "name"), [(0x6969, "nfs"), (0xFF534D42, "cifs"), (0xFE534D42, "smb2"), (0x65735546, "fuse")]
)
def test_network_file_systems_are_refused_by_name(tmp_path: Path, magic: int, name: str) -> None:
    asked: list[Path] = []

    def kind_of(folder: Path) -> int:
        asked.append(folder)
        return magic

    with pytest.raises(InvalidError, match=rf"{name}.*LORRY_STATE_DIR"):
        refuse_network_filesystem(tmp_path / "not" / "yet" / "there.db", kind_of)
    assert asked == [tmp_path]


def test_local_file_systems_are_fine(tmp_path: Path) -> None:
    refuse_network_filesystem(tmp_path / "state.db", lambda folder: 0xEF53)
    assert filesystem_magic(Path("/proc")) == 0x9FA0  # PROC_SUPER_MAGIC
    with pytest.raises(FileNotFoundError):
        filesystem_magic(tmp_path / "absent")
