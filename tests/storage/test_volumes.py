from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lorry.errors import InvalidError, NotFoundError
from lorry.storage import confined
from lorry.storage.volumes import EntryType, VolumeStore

OUTSIDE = b"the server's own secret"


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeStore:
    store = VolumeStore(tmp_path / "volumes")
    store.create("vo-1")
    return store


@pytest.fixture
def inside(volumes: VolumeStore) -> Path:
    """The volume as a container sees it."""
    return volumes.path("vo-1")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(OUTSIDE)
    return folder


def upload(volumes: VolumeStore, path: str, data: bytes = b"data") -> None:
    source = volumes.staging / "upload"
    source.write_bytes(data)
    volumes.write_from("vo-1", path, source)
    assert not source.exists()


def names(volumes: VolumeStore, path: str = "", recursive: bool = True) -> list[str]:
    return [entry.path for entry in volumes.listdir("vo-1", path, recursive)]


def test_what_is_written_is_read_and_listed(volumes: VolumeStore, inside: Path) -> None:
    upload(volumes, "/a/b/file.bin", b"0123456789")
    upload(volumes, "top")
    assert (inside / "a/b/file.bin").read_bytes() == b"0123456789"
    assert volumes.read("vo-1", "a/./b//file.bin", 2, 5) == b"23456"
    assert volumes.read("vo-1", "a/b/file.bin", 8, 1 << 40) == b"89"
    assert volumes.read("vo-1", "a/b/file.bin", 10, 5) == b""
    assert names(volumes, recursive=False) == ["a", "top"]
    assert names(volumes) == ["a", "a/b", "a/b/file.bin", "top"]
    (entry,) = volumes.listdir("vo-1", "a/b")
    assert (entry.path, entry.type, entry.size) == ("a/b/file.bin", EntryType.FILE, 10)
    assert entry.mtime == (inside / "a/b/file.bin").stat().st_mtime
    assert volumes.listdir("vo-1", "a/b/file.bin") == [entry]


def test_an_upload_replaces_a_file_at_once(volumes: VolumeStore, inside: Path) -> None:
    upload(volumes, "file", b"old")
    with (inside / "file").open("rb") as reader:
        upload(volumes, "file", b"new")
        assert reader.read() == b"old"
    assert volumes.read("vo-1", "file", 0, 10) == b"new"


def test_an_upload_from_another_file_system_is_copied(volumes: VolumeStore) -> None:
    source = Path("/dev/shm") / f"lorry-test-{os.getpid()}"
    source.write_bytes(b"far")
    volumes.write_from("vo-1", "file", source, mode=0o755)
    assert volumes.read("vo-1", "file", 0, 10) == b"far"
    assert (volumes.path("vo-1") / "file").stat().st_mode & 0o777 == 0o755
    assert not source.exists()
    assert list(volumes.staging.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_what_uploads_make_belongs_to_the_owner(tmp_path: Path) -> None:
    volumes = VolumeStore(tmp_path / "owned", owner=(12345, 54321))
    volumes.create("vo-1")
    upload(volumes, "a/file")
    top = volumes.path("vo-1")
    for path in (top, top / "a", top / "a/file"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_modes_do_not_follow_the_umask(volumes: VolumeStore, inside: Path) -> None:
    before = os.umask(0o077)
    try:
        upload(volumes, "a/file")
        volumes.create("vo-2")
    finally:
        os.umask(before)
    paths = (inside / "a", inside / "a/file", volumes.path("vo-2"))
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o755, 0o644, 0o755]


def test_remove(volumes: VolumeStore) -> None:
    for path in ("a/b/one", "a/two", "three"):
        upload(volumes, path)
    volumes.remove("vo-1", "three")
    with pytest.raises(InvalidError, match="recursive"):
        volumes.remove("vo-1", "a")
    assert names(volumes) == ["a", "a/b", "a/b/one", "a/two"]
    volumes.remove("vo-1", "a", recursive=True)
    assert names(volumes) == []
    assert list(volumes._trash.iterdir()) == []
    for path, error in (("", InvalidError), ("/", InvalidError), ("gone", NotFoundError)):
        with pytest.raises(error):
            volumes.remove("vo-1", path, recursive=True)


def test_delete_takes_everything_and_is_idempotent(volumes: VolumeStore, inside: Path) -> None:
    upload(volumes, "a/b/c")
    (inside / "a").chmod(0o555)
    volumes.delete("vo-1")
    volumes.delete("vo-1")
    assert not inside.exists()
    assert list(volumes._trash.iterdir()) == []
    with pytest.raises(NotFoundError, match="vo-1"):
        volumes.listdir("vo-1")
    volumes.create("vo-1")
    volumes.create("vo-1")
    assert names(volumes) == []


def test_leftovers_of_a_crash_are_removed_at_start(volumes: VolumeStore, tmp_path: Path) -> None:
    (volumes.staging / "half").write_bytes(b"x")
    (volumes._trash / "old" / "deep").mkdir(parents=True)
    again = VolumeStore(tmp_path / "volumes")
    assert list(again.staging.iterdir()) == list(again._trash.iterdir()) == []


def test_usage_counts_blocks_once(volumes: VolumeStore, inside: Path) -> None:
    before = volumes.usage("vo-1")
    assert before.files == 0
    upload(volumes, "a/big", b"x" * 1_000_000)
    os.link(inside / "a/big", inside / "again")
    after = volumes.usage("vo-1")
    assert after.files == 2
    assert 1_000_000 <= after.bytes - before.bytes < 1_100_000


# What a container may have prepared


def attempts(volumes: VolumeStore, path: str) -> dict[str, object]:
    def write() -> None:
        upload(volumes, path, b"overwritten")

    verbs = {
        "read": lambda: volumes.read("vo-1", path, 0, 100),
        "list": lambda: volumes.listdir("vo-1", path, recursive=True),
        "stat": lambda: volumes.stat("vo-1", path),
        "write": write,
        "remove": lambda: volumes.remove("vo-1", path, recursive=True),
    }
    outcomes: dict[str, object] = {}
    for name, verb in verbs.items():
        try:
            outcomes[name] = verb()
        except (InvalidError, NotFoundError) as error:
            outcomes[name] = type(error)
    return outcomes


@pytest.mark.parametrize("path", ["../outside/secret", "a/../../outside/secret", "..", "x\0y", "\ud800"])
def test_paths_that_leave_are_refused_by_every_verb(volumes: VolumeStore, outside: Path, path: str) -> None:
    assert set(attempts(volumes, path).values()) == {InvalidError}
    assert (outside / "secret").read_bytes() == OUTSIDE


@pytest.mark.parametrize("target", ["{outside}", "../../outside"])
def test_a_linked_folder_leads_nowhere(volumes: VolumeStore, inside: Path, outside: Path, target: str) -> None:
    (inside / "link").symlink_to(target.format(outside=outside))
    assert set(attempts(volumes, "link/secret").values()) == {InvalidError}
    assert set(attempts(volumes, "link/sub/new").values()) == {InvalidError}
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == OUTSIDE
    assert names(volumes) == ["link"]


def test_a_linked_file_is_itself_and_never_its_target(volumes: VolumeStore, inside: Path, outside: Path) -> None:
    (inside / "link").symlink_to(outside / "secret")
    with pytest.raises(InvalidError, match="not followed"):
        volumes.read("vo-1", "link", 0, 100)
    assert volumes.stat("vo-1", "link").type == EntryType.SYMLINK
    upload(volumes, "link", b"mine")
    assert (outside / "secret").read_bytes() == OUTSIDE
    assert not (inside / "link").is_symlink()
    (inside / "folder").symlink_to(outside)
    volumes.remove("vo-1", "folder", recursive=True)
    assert (outside / "secret").exists()


def test_a_folder_swapped_for_a_link_after_it_was_made(
    volumes: VolumeStore, inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = confined._make

    def made_and_swapped(folder: int, part: str) -> bool:
        made = make(folder, part)
        (inside / part).rmdir()
        (inside / part).symlink_to(outside)
        return made

    monkeypatch.setattr(confined, "_make", made_and_swapped)
    with pytest.raises(InvalidError):
        upload(volumes, "a/secret", b"overwritten")
    assert (outside / "secret").read_bytes() == OUTSIDE
    assert list(volumes.staging.iterdir()) == []


def test_a_walk_does_not_enter_a_folder_that_became_a_link(volumes: VolumeStore, inside: Path, outside: Path) -> None:
    upload(volumes, "a/file")
    upload(volumes, "b/file")
    found = []
    for parts, _ in confined.walk(inside, (), recursive=True):
        found.append("/".join(parts))
        if parts == ("b",):
            (inside / "a/file").unlink()
            (inside / "a").rmdir()
            (inside / "a").symlink_to(outside)
    assert found == ["a", "b", "b/file"]


def test_files_that_are_no_files_neither_block_nor_read(
    volumes: VolumeStore, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(inside / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(inside)  # 108 bytes are too few for the path of a test folder
        listener.bind("socket")
        for path in ("fifo", "socket", "", "/"):
            with pytest.raises(InvalidError):
                volumes.read("vo-1", path, 0, 10)
    assert {entry.type for entry in volumes.listdir("vo-1")} == {EntryType.OTHER}


def test_a_path_through_a_file_or_onto_a_folder(volumes: VolumeStore) -> None:
    upload(volumes, "a/file")
    for path in ("a/file/below", "a", "", "n" * 300):
        with pytest.raises(InvalidError):
            upload(volumes, path)
    with pytest.raises(InvalidError):
        volumes.listdir("vo-1", "a/file/below")
    assert names(volumes) == ["a", "a/file"]


def test_nesting_without_end_is_named_and_still_deleted(volumes: VolumeStore, inside: Path) -> None:
    here = os.open(inside, os.O_RDONLY)
    for _ in range(1100):  # deeper than PATH_MAX allows by name, than recursion goes, than descriptors last
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(InvalidError, match="more than 256"):
        volumes.listdir("vo-1", recursive=True)
    volumes.delete("vo-1")
    assert list(volumes._trash.iterdir()) == []


@pytest.mark.parametrize("volume_id", ["", "..", ".trash", ".staging", "a/b", "vo 1"])
def test_ids_that_are_no_ids(volumes: VolumeStore, volume_id: str) -> None:
    for verb in (volumes.create, volumes.delete, volumes.listdir, volumes.usage):
        with pytest.raises(InvalidError, match="not a volume id"):
            verb(volume_id)


def test_a_negative_range_is_refused(volumes: VolumeStore) -> None:
    upload(volumes, "file")
    for offset, length in ((-1, 5), (0, -1)):
        with pytest.raises(InvalidError):
            volumes.read("vo-1", "file", offset, length)
