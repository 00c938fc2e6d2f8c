from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from blob_writing import put

from lorry.errors import InvalidError, NotFoundError
from lorry.storage.blobs import BlobStore
from lorry.storage.trees import TreeStore, digest_of


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def trees(tmp_path: Path, blobs: BlobStore) -> TreeStore:
    return TreeStore(tmp_path / "trees", blobs)


def listing(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def test_a_manifest_becomes_a_folder(trees: TreeStore, blobs: BlobStore) -> None:
    a, b = put(blobs, b"a"), put(blobs, b"b")
    manifest = [("pkg/__init__.py", a, 0o644), ("pkg/sub/run.sh", b, 0o755), ("main.py", a, 0o644)]
    tree = trees.ensure(manifest)
    assert tree.name == digest_of(manifest)
    assert listing(tree) == {"pkg/__init__.py": b"a", "pkg/sub/run.sh": b"b", "main.py": b"a"}
    modes = {str(path.relative_to(tree)): path.stat().st_mode & 0o777 for path in tree.rglob("*")}
    assert modes == {
        "main.py": 0o644,
        "pkg": 0o555,
        "pkg/__init__.py": 0o644,
        "pkg/sub": 0o555,
        "pkg/sub/run.sh": 0o755,
    }


def test_equal_modes_share_the_blob_and_others_copy(trees: TreeStore, blobs: BlobStore) -> None:
    digest = put(blobs, b"x")
    tree = trees.ensure([("same", digest, 0o644), ("other", digest, 0o755)])
    assert (tree / "same").samefile(blobs.path(digest))
    assert not (tree / "other").samefile(blobs.path(digest))
    assert blobs.path(digest).stat().st_mode & 0o777 == 0o644


def test_files_are_copied_where_links_are_impossible(
    trees: TreeStore, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    digest = put(blobs, b"x")
    tree = trees.ensure([("file", digest, 0o644)])
    assert (tree / "file").read_bytes() == b"x"
    assert (tree / "file").stat().st_mode & 0o777 == 0o644
    assert not (tree / "file").samefile(blobs.path(digest))


def test_order_does_not_matter_and_content_does(trees: TreeStore, blobs: BlobStore) -> None:
    a, b = put(blobs, b"a"), put(blobs, b"b")
    manifest = [("x", a, 0o644), ("y", b, 0o644)]
    assert trees.ensure(manifest) == trees.ensure(manifest[::-1])
    assert trees.ensure([("x", b, 0o644), ("y", a, 0o644)]) != trees.ensure(manifest)
    assert trees.ensure([("x", a, 0o755), ("y", b, 0o644)]) != trees.ensure(manifest)
    assert listing(trees.ensure([])) == {}


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "a/../b", "../x", "/etc/passwd", "a//b", "a/", "./a", "a\0b", "\ud800", "n" * 300],
)
def test_paths_that_are_not_plain_are_refused(trees: TreeStore, blobs: BlobStore, path: str) -> None:
    with pytest.raises(InvalidError):
        trees.ensure([(path, put(blobs, b"x"), 0o644)])
    assert list(trees._root.iterdir()) == []


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b/c", "a/b"), ("a", "a")])
def test_a_path_cannot_pass_through_a_file_or_come_twice(
    trees: TreeStore, blobs: BlobStore, paths: tuple[str, str]
) -> None:
    with pytest.raises(InvalidError):
        trees.ensure([(path, put(blobs, b"x"), 0o644) for path in paths])


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_a_missing_blob_is_named_and_leaves_nothing(trees: TreeStore, blobs: BlobStore, mode: int) -> None:
    with pytest.raises(NotFoundError, match="ab" * 32):
        trees.ensure([("here", put(blobs, b"x"), 0o644), ("gone", "ab" * 32, mode)])
    assert list(trees._root.iterdir()) == []


def test_builders_of_one_tree_do_not_collide(tmp_path: Path, blobs: BlobStore) -> None:
    manifest = [(f"d{n % 7}/f{n}", put(blobs, b"%d" % n), 0o644) for n in range(60)]
    stores = [TreeStore(tmp_path / "trees", blobs) for _ in range(4)]
    barrier, built = threading.Barrier(4), []

    def build(store: TreeStore) -> None:
        barrier.wait(10)
        built.append(store.ensure(manifest))

    threads = [threading.Thread(target=build, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(built) == {tmp_path / "trees" / digest_of(manifest)}
    assert len(built) == 4
    assert len(listing(built[0])) == 60
    assert [path.name for path in (tmp_path / "trees").iterdir()] == [digest_of(manifest)]


def test_the_slower_builder_takes_the_tree_of_the_faster(trees: TreeStore, blobs: BlobStore) -> None:
    manifest = [("x", put(blobs, b"x"), 0o644)]
    place = trees._place

    def overtaken(*arguments: object) -> None:
        trees._place = place
        trees.ensure(manifest)
        place(*arguments)

    trees._place = overtaken
    assert listing(trees.ensure(manifest)) == {"x": b"x"}
    assert len(list(trees._root.iterdir())) == 1


def test_half_built_trees_are_removed_at_start(tmp_path: Path, blobs: BlobStore) -> None:
    leftover = tmp_path / "trees" / ".building-1" / "sub"
    leftover.mkdir(parents=True)
    leftover.parent.chmod(0o555)
    TreeStore(tmp_path / "trees", blobs)
    assert list((tmp_path / "trees").iterdir()) == []


def test_collect_deletes_the_other_trees_and_no_blob(trees: TreeStore, blobs: BlobStore) -> None:
    digest = put(blobs, b"x")
    kept, gone = (trees.ensure([(name, digest, 0o644)]) for name in ("kept", "sub/gone"))
    assert trees.collect({kept.name}) == 1
    assert listing(kept) == {"kept": b"x"}
    assert not gone.exists()
    assert blobs.has(digest)
    assert listing(trees.ensure([("sub/gone", digest, 0o644)])) == {"sub/gone": b"x"}
