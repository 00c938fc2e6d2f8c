"""Disks that are full, files that may not grow, folders that cannot be written."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import store_saving
from store_saving import contents, saved, staged, state_at

from lorry.errors import StorageFullError
from lorry.train import folder_store
from lorry.train.local_store import LocalStore
from lorry.train.manifest import Head, Manifest
from lorry.train.store import resolve

BEGINNING = """
import os, subprocess, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from store_saving import *
from lorry.errors import *

folder = Path(sys.argv[2])
store = LocalStore(folder)
head = saved(store, 1, store.begin())

def fill(pages):
    "Leave so many free."
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)): pass
        except OSError: pass
        filler.truncate(filler.tell() // 4096 * 4096 - pages * 4096)

def refused(save):
    "The sentence; and the checkpoint before is as it was."
    try:
        save()
    except ResourceError as error:
        assert isinstance(error, StorageFullError) == (sys.argv[3] != "read-only"), error
        assert str(folder) in str(error)
        other = LocalStore(folder)
        assert other.head() == head, other.head()
        assert resolve(other).id == head.manifest
        assert contents(other, resolve(other)) == state_at(1)
        return str(error)
    raise AssertionError("not refused")

before = sorted(folder.glob("chunks/*/*"))
"""
CASES = {
    "chunk": """
fill(1)
print(refused(lambda: saved(store, 2, 1, head.manifest, pieces=[b"small", bytes(9000)])))
assert sorted(folder.glob("chunks/*/*")) == before
""",
    "manifest": """
manifest = staged(store, 2, 1, head.manifest)
fill(0)
print(refused(lambda: store.commit(manifest)))
assert sorted(folder.glob("chunks/*/*")) == before  # it gave back what it had taken
""",
    "head": """
manifest = staged(store, 2, 1, head.manifest)
fill(1)
print(refused(lambda: store.commit(manifest)))
assert contents(store, store.manifest(manifest.id)) == state_at(2)  # whole, though HEAD never named it
""",
    "token": """
fill(0)
print(refused(LocalStore(folder).begin))
""",
    "read-only": """
manifest = staged(store, 2, 1, head.manifest)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
for save in (LocalStore(folder).begin, lambda: store.put(memoryview(b"more")), lambda: store.commit(manifest)):
    print(refused(save))
subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
""",
}
AFTER = """
(folder / "filler").unlink(missing_ok=True)
assert sys.argv[3] == "read-only" or not list((folder / "incoming").glob("*/*"))
assert saved(store, 3, 1, head.manifest).step == store.head().step == 3
assert contents(store, resolve(store)) == state_at(3)
"""


@pytest.mark.parametrize("case", CASES)
def test_a_small_disk_of_its_own(tmp_path: Path, case: str) -> None:
    """A tmpfs of 60 pages in a mount namespace of the child."""
    inside = 'mount -t tmpfs -o size=240k tmpfs "$1" && shift && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, "sh", str(tmp_path)]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs in a namespace")
    program = BEGINNING + CASES[case] + AFTER
    helper = str(Path(store_saving.__file__).parent)
    done = subprocess.run(
        [*unshare, sys.executable, "-c", program, helper, str(tmp_path), case],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert ("Read-only file system" if case == "read-only" else "is full (No space left on device)") in done.stdout


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_stale_attempt_on_a_full_disk_takes_nothing_from_the_newer_one(
    store: LocalStore, head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one has found a chunk that the stale one had just brought to disk."""
    newer = LocalStore(tmp_path)

    def full(folder: Path) -> None:
        monkeypatch.undo()
        found.append(staged(newer, 2, newer.begin(), head.manifest))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found: list[Manifest] = []
    monkeypatch.setattr(folder_store, "sync_folder", full)
    with pytest.raises(StorageFullError):
        saved(store, 2, 1, head.manifest)
    newer.commit(found[0])
    assert contents(newer, found[0]) == state_at(2)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.fixture
def head(store: LocalStore) -> Head:
    return saved(store, 1, store.begin())


def test_a_chunk_that_may_not_grow(store: LocalStore, head: Head, tmp_path: Path) -> None:
    with files_of_at_most(100), pytest.raises(StorageFullError, match="the one before it is as it was"):
        saved(store, 2, 1, head.manifest)
    unharmed(store, head, tmp_path)


def test_a_manifest_that_may_not_grow(store: LocalStore, head: Head, tmp_path: Path) -> None:
    manifest = staged(store, 2, 1, head.manifest)
    with files_of_at_most(300), pytest.raises(StorageFullError):
        store.commit(manifest)
    unharmed(store, head, tmp_path)


def unharmed(store: LocalStore, head: Head, folder: Path) -> None:
    assert store.head() == head
    assert not list((folder / "incoming").glob("*/*"))
    assert len(list((folder / "m").iterdir())) == 1
    assert len(list((folder / "chunks").glob("*/*"))) == 3
    newest = saved(store, 2, 1, head.manifest)
    assert contents(store, store.manifest(newest.manifest)) == state_at(2)
    assert resolve(store) == store.manifest(newest.manifest)
