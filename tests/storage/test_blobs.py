from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from blob_writing import names, put

from lorry.errors import InvalidError, StorageFullError
from lorry.storage.blobs import BlobStore, Freed


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "state" / "blobs")


@pytest.mark.parametrize("data", [b"", b"hello", b"x" * 3_000_000], ids=["empty", "small", "large"])
def test_what_is_put_is_found_under_its_digest(blobs: BlobStore, data: bytes) -> None:
    assert blobs.missing([sha(data)]) == [sha(data)]
    assert put(blobs, data) == sha(data)
    assert put(blobs, data) == sha(data)
    assert blobs.has(sha(data))
    assert blobs.path(sha(data)).read_bytes() == data
    assert names(blobs) == {sha(data)}


def test_missing_asks_for_each_digest_once_and_in_order(blobs: BlobStore) -> None:
    here, first, second = put(blobs, b"here"), sha(b"1"), sha(b"2")
    assert blobs.missing([second, here, first, second]) == [second, first]


def test_modes_are_open_to_containers_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        blobs = BlobStore(tmp_path / "blobs")
        path = blobs.path(put(blobs, b"data"))
    finally:
        os.umask(before)
    assert [each.stat().st_mode & 0o777 for each in (path, path.parent, path.parent.parent)] == [
        0o644,
        0o755,
        0o755,
    ]


def test_a_streamed_upload(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        for piece in (b"ab", bytearray(b"cd"), memoryview(b"ef")):
            writer.write(piece)
        assert writer.size == 6
        assert not blobs.has(sha(b"abcdef"))
        assert writer.commit(sha(b"abcdef")) == sha(b"abcdef")
    assert blobs.path(sha(b"abcdef")).read_bytes() == b"abcdef"


def test_a_damaged_upload_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    with blobs.writer() as writer:
        writer.write(b"damaged")
        with pytest.raises(InvalidError, match="arrived damaged"):
            writer.commit(sha(b"whole"))
    assert names(blobs) == set()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_abandoned_upload_leaves_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    with blobs.writer() as writer:
        writer.write(b"half")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_half_written_files_are_removed_at_start(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    digest = put(blobs, b"whole")
    killed = blobs.writer()  # nobody will commit or abort it
    killed.write(b"half")
    killed._file.close()
    assert len(list((tmp_path / "incoming").iterdir())) == 1
    again = BlobStore(tmp_path)
    assert list((tmp_path / "incoming").iterdir()) == []
    assert names(again) == {digest}


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n", "a" * 65])
def test_only_digests_are_names(blobs: BlobStore, digest: str) -> None:
    for verb in (blobs.path, blobs.has):
        with pytest.raises(InvalidError, match="not a SHA-256"):
            verb(digest)


def test_collect_spares_what_is_kept_or_was_asked_for(blobs: BlobStore) -> None:
    kept, old, asked = (put(blobs, data) for data in (b"kept", b"old", b"asked"))
    for digest in (kept, old, asked):
        os.utime(blobs.path(digest), (1000.0, 1000.0))
    assert blobs.missing([asked]) == []
    assert blobs.collect({kept}, older_than=2000.0) == Freed(files=1, bytes=3)
    assert names(blobs) == {kept, asked}


def test_asking_for_a_blob_does_not_change_when_it_was_modified(blobs: BlobStore) -> None:
    digest = put(blobs, b"print()")
    os.utime(blobs.path(digest), (1000.0, 1000.0))
    blobs.has(digest)
    assert blobs.path(digest).stat().st_mtime == 1000.0


def test_a_full_disk_has_its_own_error(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        writer._file.close()
        writer._file = io.FileIO("/dev/full", "w")
        with pytest.raises(StorageFullError, match="lorry prune"):
            writer.write(b"data")
