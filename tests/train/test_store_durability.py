"""The power goes: only what was fsynced is sure, and what was not may be there all the same."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from store_saving import FROZEN, saved, staged, state_at

from lorry.train.folder_store import YOUNG
from lorry.train.local_store import LocalStore


class Disk:
    """What a crash of the machine would leave, from the calls that reach the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.contents: set[int] = set()
        """Inodes of files that are whole on disk."""
        self.names: set[Path] = set()
        """Durable."""
        self.pending: set[Path] = set()
        """Folders and renamed files whose own folder was not synced since."""
        self.heads = 0
        self._fsync, self._rename, self._mkdir = os.fsync, os.rename, os.mkdir
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "rename", self.rename)
        monkeypatch.setattr(os, "mkdir", self.mkdir)

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self.names |= {pending for pending in self.pending if pending.parent == path}
            self.pending -= self.names
        else:
            self.contents.add(os.fstat(descriptor).st_ino)

    def mkdir(self, path: Any, *arguments: Any) -> None:
        self._mkdir(path, *arguments)
        self.pending.add(Path(path))

    def rename(self, source: Any, target: Any) -> None:
        assert os.stat(source).st_ino in self.contents, f"{target} has a name before it is whole"
        if Path(target).name == "HEAD":
            self.heads += 1
            everything = [*self.folder.glob("m/*"), *self.folder.glob("chunks/*/*"), self.folder / "TOKEN"]
            assert len(everything) > 3
            for path in everything:
                for each in (path, *path.parents):
                    assert each not in self.pending, f"HEAD moves before {each} is durable"
                assert path in self.names
        self._rename(source, target)
        self.names.discard(Path(target))
        self.pending.add(Path(target))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Disk:
    return Disk(monkeypatch, folder)


def test_head_moves_when_all_that_it_needs_is_durable(disk: Disk, folder: Path) -> None:
    store = LocalStore(folder)
    token = store.begin()
    head = saved(store, 1, token)
    saved(store, 2, token, head.manifest)
    assert disk.heads == 2
    assert folder / "HEAD" in disk.names
    assert folder / "TOKEN" in disk.names


def test_the_names_of_chunks_that_another_process_left_are_made_durable(disk: Disk, folder: Path) -> None:
    """It was killed when they had their names and their folders were not synced."""
    killed = LocalStore(folder)
    staged(killed, 1, killed.begin())
    for temporary in killed._written.values():
        descriptor = os.open(temporary, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    for digest, temporary in killed._written.items():
        killed._chunk_path(digest).parent.mkdir(exist_ok=True)
        temporary.rename(killed._chunk_path(digest))
    store = LocalStore(folder)
    saved(store, 1, store.begin())
    assert disk.heads == 1


def test_a_chunk_that_was_collected_and_came_back_is_durable_again(disk: Disk, folder: Path) -> None:
    store = LocalStore(folder, wall=lambda: time.time() + YOUNG + 1)
    token = store.begin()
    first = saved(store, 1, token)
    second = saved(store, 2, token, first.manifest, pieces=[FROZEN, b"2", b"other"])
    assert store.collect([second.manifest]) > 0
    saved(store, 3, token, second.manifest, pieces=state_at(1))
    assert disk.heads == 3
