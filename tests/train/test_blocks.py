"""Blocks of far files: read once, kept within a bound, whole or not used."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lorry
from lorry.errors import InvalidError
from lorry.train import blocks
from lorry.train.blocks import FarFile
from lorry.train.sources import MappedFile, Version

BLOCK = 1000
LINES = [f"line {number} {'x' * (number % 50)}" for number in range(500)]
SIZE = len("\n".join(LINES))
BLOCKS = -(-SIZE // BLOCK)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(blocks, "BLOCK", BLOCK)
    monkeypatch.setattr(FarFile, "fetched", 0)
    (tmp_path / "cache/lorry/blocks").mkdir(parents=True)
    return tmp_path / "cache/lorry/blocks"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as far away, beside a cache folder that does not."""
    path = tmp_path / "remote" / "a.txt"
    path.parent.mkdir()
    path.write_text("\n".join(LINES))
    monkeypatch.setattr("lorry.train.lines.far", lambda name: Path(name) == path)
    return path


def opened(path: Path, folder: Path) -> FarFile:
    with path.open("rb") as file:
        return FarFile(Version.of(str(path), file.fileno()), folder)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.block"))


def test_the_source_is_read_once_for_index_epochs_and_attempts(remote: Path, cache: Path) -> None:
    data = lorry.data.text(remote)
    assert FarFile.fetched == SIZE
    for epochs in (1, 2):
        assert sorted(line for batch in data.batches(epochs=epochs) for line in batch) == sorted(LINES * epochs)
    assert list(lorry.data.text(remote)) == LINES
    assert FarFile.fetched == SIZE
    assert len(kept(cache)) == BLOCKS


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 3 * BLOCK)), max_size=20))
def test_any_range_is_what_the_file_has(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("far")
    content = random.Random(1).randbytes(SIZE)
    (folder / "a").write_bytes(content)
    far = opened(folder / "a", folder)
    for offset, size in ranges:
        stop = min(SIZE, offset + size)
        assert far.read(offset, stop - offset) == content[offset:stop]
        buffer = bytearray(size)
        assert far.read_into(offset, memoryview(buffer)) == stop - offset
        assert buffer[: stop - offset] == content[offset:stop]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1] + bytes([data[-1] ^ 128]),
        lambda data: data + b"x",
    ],
)
def test_a_damaged_block_is_read_anew(remote: Path, cache: Path, damage: Any) -> None:
    lorry.data.text(remote)
    block = next(path for path in kept(cache) if path.name.endswith("-2.block"))
    good = block.read_bytes()
    block.write_bytes(damage(good))
    FarFile.fetched = 0
    assert list(lorry.data.text(remote)) == LINES
    assert FarFile.fetched == BLOCK
    assert block.read_bytes() == good


def test_the_folder_keeps_no_more_than_its_limit(remote: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LIMIT", 5 * (BLOCK + blocks.DIGEST))
    monkeypatch.setattr(blocks, "MAPPED", 2)
    data = lorry.data.text(remote)
    assert 1 <= len(kept(cache)) <= 5
    assert sorted(line for batch in data.batches() for line in batch) == sorted(LINES)
    assert 1 <= len(kept(cache)) <= 5


def test_the_block_that_was_not_used_for_longest_goes(
    remote: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = opened(remote, cache)
    far.fetch(0, 3 * BLOCK)
    for age, block in enumerate(kept(cache)):
        os.utime(block, (1000 - age, 1000 - age))
    opened(remote, cache).read(2 * BLOCK, 1)  # used now
    monkeypatch.setattr(blocks, "LIMIT", 3 * (BLOCK + blocks.DIGEST))
    far.fetch(3 * BLOCK, 1)
    assert [block.name.rpartition("-")[2] for block in kept(cache)] == ["0.block", "2.block", "3.block"]
    assert far.read(BLOCK, 10) == remote.read_bytes()[BLOCK : BLOCK + 10]  # who has it mapped keeps it


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_without_room_for_blocks_it_reads_what_it_needs(
    remote: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fails(place: Path, data: bytes) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(blocks, "_keep", fails)
    data = lorry.data.text(remote)
    FarFile.fetched = 0
    assert list(data) == LINES
    assert FarFile.fetched < SIZE + 2 * BLOCK
    assert kept(cache) == []


def test_a_new_version_has_blocks_of_its_own(remote: Path) -> None:
    assert lorry.data.text(remote)[0] == LINES[0]
    before = remote.stat()
    remote.write_text(remote.read_text().replace("line 0 ", "LINE 0 "))
    os.utime(remote, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time say nothing
    assert lorry.data.text(remote)[0] == LINES[0].upper()


def test_a_file_that_is_cut_short_while_it_is_read_is_named(remote: Path, cache: Path) -> None:
    far = opened(remote, cache)
    os.truncate(remote, 10)
    with pytest.raises(InvalidError, match=r"a\.txt ends before byte 1000: it was cut short"):
        far.read(0, 5)
    assert kept(cache) == []


def test_a_block_of_a_file_that_is_written_to_is_not_kept(remote: Path, cache: Path) -> None:
    far = opened(remote, cache)
    with remote.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InvalidError, match="was changed or replaced"):
        far.read(0, 5)
    assert kept(cache) == []


def test_whoever_wants_a_block_that_another_reads_waits_for_it(
    remote: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for processes: each has a file, and a lock's descriptor, of its own."""
    wanting, all_want, alone, read = [], threading.Event(), blocks._alone, FarFile._read

    def counted(path: Path) -> Any:
        wanting.append(path)
        if len(wanting) == 3:
            all_want.set()
        return alone(path)

    def late(far: FarFile, offset: int, size: int) -> bytes:
        assert all_want.wait(30)
        return read(far, offset, size)

    monkeypatch.setattr(blocks, "_alone", counted)
    monkeypatch.setattr(FarFile, "_read", late)
    threads = [threading.Thread(target=opened(remote, cache).fetch, args=(0, 1)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert FarFile.fetched == BLOCK


def test_a_worker_that_was_forked_under_a_lock_does_not_keep_it(cache: Path) -> None:
    ready, end = os.pipe()
    with blocks._alone(cache / "0.lock"):
        child = os.fork()
        if not child:
            os.close(end)
            os.read(ready, 1)
            os._exit(0)
    with blocks._alone(cache / "0.lock"):
        pass
    os.close(end)
    os.waitpid(child, 0)
    os.close(ready)


def test_what_a_killed_process_left_goes_after_an_hour(remote: Path, cache: Path) -> None:
    young, old = cache / "x.block.young", cache / "x.block.old"
    young.touch()
    old.touch()
    os.utime(old, (1, 1))
    opened(remote, cache).fetch(0, 1)
    assert young.exists()
    assert not old.exists()


def test_batches_ask_for_blocks_before_they_need_them(
    remote: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With nothing kept, a thread of the loop brings everything in."""
    data = lorry.data.text(remote)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    data._open.clear()
    fetching, done = [], threading.Event()

    def fetch(run: range) -> None:
        fetching.append((threading.current_thread().name, run))
        if sum(len(run) for _, run in fetching) == len(LINES):
            done.set()

    monkeypatch.setattr(data, "fetch", fetch)
    monkeypatch.setattr("lorry.train.order.FEW", 10)
    loop = iter(data.batches(batch=4))
    next(loop)
    assert done.wait(30)
    assert {name for name, _ in fetching} == {"lorry-ahead"}


def test_which_files_are_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = blocks._file_system(tmp_path.stat().st_dev)
    assert here
    for kind, wanted in (("nfs4", True), ("fuse.sshfs", True), ("fuseblk", False), ("ext4", False), ("", False)):
        monkeypatch.setattr(blocks, "_file_system", lambda device, kind=kind: kind)
        assert blocks.far(tmp_path) is wanted
    assert not blocks.far(tmp_path / "missing")


def test_a_local_file_is_not_kept_twice(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    data = lorry.data.text(path)
    assert isinstance(data._opened(0)[1], MappedFile)
    assert kept(cache) == []
    monkeypatch.setattr("lorry.train.lines.far", lambda name: True)
    monkeypatch.setattr(blocks, "far", lambda name: True)  # the cache folder is as far away
    assert isinstance(lorry.data.text(path)._opened(0)[1], MappedFile)
