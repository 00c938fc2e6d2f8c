"""One process and a healthy disk, then files that something damaged."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import time
from pathlib import Path

import pytest
from store_saving import FROZEN, content, contents, saved, staged, state_at

from lorry.errors import CorruptCheckpointError, InvalidError, ResourceError, StaleAttemptError
from lorry.train.folder_store import YOUNG
from lorry.train.local_store import LOST_TOKENS, LocalStore
from lorry.train.manifest import Chunk
from lorry.train.store import resolve, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


@pytest.fixture
def store(folder: Path) -> LocalStore:
    return LocalStore(folder)


def chunk_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("chunks/*/*"))


def chunk_file(folder: Path, chunk: Chunk) -> Path:
    return folder / "chunks" / chunk.sha256[:2] / chunk.sha256


def manifest_file(folder: Path, manifest_id: str) -> Path:
    return next((folder / "m").glob(f"*-{manifest_id}.json"))


def flip(path: Path, bit: int = 77) -> bytes:
    """The damaged content."""
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)
    return bytes(content)


def hour_later() -> float:
    return time.time() + YOUNG + 1


# --- saving and reading ---------------------------------------------------------------------------------------


def test_a_folder_is_not_touched_before_the_first_attempt(store: LocalStore, folder: Path) -> None:
    assert store.head() is None
    assert resolve(store) is None
    assert not folder.exists()


def test_what_was_committed_is_what_a_new_process_reads(store: LocalStore, folder: Path) -> None:
    token = store.begin()
    manifest = staged(store, 3, token)
    head = store.commit(manifest)
    assert (head.manifest, head.step, head.token) == (manifest.id, 3, token)
    other = LocalStore(folder)
    assert other.head() == head
    assert resolve(other) == other.manifest(head.manifest) == manifest
    assert contents(other, manifest) == state_at(3)
    assert not list((folder / "incoming").glob("*/*"))


def test_nothing_counts_before_the_commit(store: LocalStore, folder: Path) -> None:
    staged(store, 1, store.begin())
    assert LocalStore(folder).head() is None
    assert resolve(LocalStore(folder)) is None


def test_equal_bytes_are_stored_once(store: LocalStore, folder: Path) -> None:
    token = store.begin()
    chunk, new = store.put(memoryview(FROZEN))
    assert new == chunk.size == len(FROZEN)
    assert store.put(memoryview(FROZEN)) == (chunk, 0)
    first = saved(store, 1, token)
    assert store.put(memoryview(FROZEN)) == (chunk, 0)
    saved(store, 2, token, first.manifest)
    assert len(chunk_files(folder)) == 1 + 2 + 2
    assert LocalStore(folder).put(memoryview(FROZEN)) == (chunk, 0)


def test_bytes_can_be_read_before_the_commit_too(store: LocalStore) -> None:
    store.begin()
    assert content(store, store.put(memoryview(b"early"))[0]) == b"early"


@pytest.mark.parametrize(
    "data",
    [
        memoryview(b""),
        memoryview(array.array("d", [1.0, 2.0])),
        memoryview(bytes(6)).cast("B", (2, 3)),
        memoryview(bytearray(b"x")),
    ],
    ids=["empty", "doubles", "two dimensions", "writable"],
)
def test_any_contiguous_buffer_is_bytes(store: LocalStore, data: memoryview) -> None:
    store.begin()
    chunk, new = store.put(data)
    assert (chunk.size, new) == (data.nbytes, data.nbytes)
    assert content(store, chunk) == data.tobytes()


@pytest.mark.parametrize("start", [0, 64], ids=["at a page", "off a page"])
@pytest.mark.parametrize("size", [100, mmap.PAGESIZE, 3 * mmap.PAGESIZE + 5])
def test_whole_pages_of_memory_go_past_the_page_cache(
    store: LocalStore, folder: Path, start: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system and the place in memory allow it; the content is right anyway."""
    store.begin()
    memory = mmap.mmap(-1, 4 * mmap.PAGESIZE + start)
    memory[:] = os.urandom(len(memory))
    data = memoryview(memory)[start : start + size]
    direct, write = [], os.write

    def noted(descriptor: int, content: memoryview) -> int:
        written = write(descriptor, content)
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            direct.append(written)
        return written

    monkeypatch.setattr(os, "write", noted)
    chunk, new = store.put(data)
    assert new == size
    assert content(store, chunk) == bytes(data)
    if start == 0 and takes_pages(folder):
        assert sum(direct) == size // mmap.PAGESIZE * mmap.PAGESIZE


def takes_pages(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_a_buffer_may_be_used_again_after_put(store: LocalStore) -> None:
    token = store.begin()
    buffer = bytearray(b"first")
    chunk, _ = store.put(memoryview(buffer))
    buffer[:] = b"later"
    saved(store, 1, token)
    assert content(store, chunk) == b"first"


@pytest.mark.parametrize("digest", ["", "../../HEAD", "A" * 64, "a" * 63, "*" * 64, "a" * 64 + "\n"])
def test_only_digests_are_names(store: LocalStore, digest: str) -> None:
    store.begin()
    with pytest.raises(InvalidError, match="SHA-256"):
        content(store, Chunk(sha256=digest, size=1))
    with pytest.raises(InvalidError, match="SHA-256"):
        store.manifest(digest)


# --- attempts -------------------------------------------------------------------------------------------------


def test_each_attempt_has_a_larger_token_in_every_process(store: LocalStore, folder: Path) -> None:
    assert [store.begin(), LocalStore(folder).begin(), store.begin()] == [1, 2, 3]


def test_an_older_attempt_cannot_commit_or_collect(store: LocalStore, folder: Path) -> None:
    old = store.begin()
    head = saved(store, 1, old)
    manifest = staged(store, 2, old)
    newer = LocalStore(folder)
    new = newer.begin()
    with pytest.raises(StaleAttemptError, match="newer attempt"):  # its unwritten chunks are gone
        store.commit(manifest)
    with pytest.raises(StaleAttemptError, match="newer attempt"):
        store.put(memoryview(b"more"))
    with pytest.raises(StaleAttemptError, match="attempt 2 has begun"):
        saved(store, 2, old, pieces=[FROZEN])  # nothing of it has to be written
    with pytest.raises(StaleAttemptError, match="attempt 2 has begun"):
        store.collect([])
    assert store.head() == newer.head() == head
    assert len(list((folder / "m").iterdir())) == 1
    assert saved(newer, 2, new, head.manifest).token == new


def test_a_token_that_never_began_cannot_commit(store: LocalStore) -> None:
    token = store.begin()
    with pytest.raises(StaleAttemptError):
        saved(store, 1, token + 1)


def test_a_commit_may_be_asked_for_twice(store: LocalStore) -> None:
    manifest = staged(store, 1, store.begin())
    assert store.commit(manifest) == store.commit(manifest) == store.head()


def test_a_folder_that_is_a_file_has_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResourceError, match="LORRY_RUN_DIR"):
            LocalStore(folder).begin()


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 77, 2001])
def test_a_flipped_bit_in_a_chunk(store: LocalStore, folder: Path, bit: int) -> None:
    token = store.begin()
    first = saved(store, 1, token)
    second = staged(store, 2, token, first.manifest)
    store.commit(second)
    chunk = second.entries[1].chunks[0]
    damaged = flip(chunk_file(folder, chunk), bit)
    with pytest.raises(CorruptCheckpointError, match=chunk.sha256):
        content(store, chunk)
    assert not chunk_file(folder, chunk).exists()
    assert [path.read_bytes() for path in (folder / "bad").iterdir()] == [damaged]
    assert resolve(store) == store.manifest(first.manifest)
    with pytest.raises(CorruptCheckpointError, match="missing"):
        content(store, chunk)
    saved(store, 2, token, first.manifest)  # the next save brings it back
    assert content(store, chunk) == state_at(2)[1]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_chunk_of_another_length(store: LocalStore, folder: Path, change: int) -> None:
    first = saved(store, 1, store.begin())
    chunk = store.manifest(first.manifest).entries[1].chunks[0]
    path = chunk_file(folder, chunk)
    whole = path.read_bytes()
    path.write_bytes(whole + b"more" if change > 0 else whole[:change])
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        content(store, chunk)


def test_a_flipped_bit_in_a_manifest(store: LocalStore, folder: Path) -> None:
    token = store.begin()
    heads = [saved(store, 1, token)]
    for step in (2, 3):
        heads.append(saved(store, step, token, heads[-1].manifest))
    damaged = flip(manifest_file(folder, heads[2].manifest))
    with pytest.raises(CorruptCheckpointError, match=heads[2].manifest):
        store.manifest(heads[2].manifest)
    assert [path.read_bytes() for path in (folder / "bad").iterdir()] == [damaged]
    newest = resolve(store)
    assert newest is not None
    assert newest.id == heads[1].manifest  # its parent, though the name of the parent was lost


@pytest.mark.parametrize("bit", range(0, 1800, 131))
def test_a_flipped_bit_in_head(store: LocalStore, folder: Path, bit: int) -> None:
    token = store.begin()
    first = saved(store, 1, token)
    second = saved(store, 2, token, first.manifest)
    damaged = flip(folder / "HEAD", bit)
    with pytest.raises(CorruptCheckpointError, match="HEAD is damaged"):
        store.head()
    assert [path.read_bytes() for path in (folder / "bad").iterdir()] == [damaged]
    assert store.head() is None
    assert resolve(store) == store.manifest(second.manifest)
    assert saved(store, 3, token, second.manifest) == store.head()


def test_with_head_lost_a_newer_attempt_counts_more_than_a_later_step(store: LocalStore, folder: Path) -> None:
    old = saved(store, 9, store.begin())
    new = saved(store, 4, store.begin(), old.manifest)
    (folder / "HEAD").unlink()
    assert list(store.history()) == [new.manifest, old.manifest]


def test_a_flipped_bit_in_token_stops_the_attempt_and_the_next_is_above_all(store: LocalStore, folder: Path) -> None:
    head = saved(store, 1, store.begin())
    alive = LocalStore(folder)
    alive.begin()
    damaged = flip(folder / "TOKEN", 3)
    for match in ("TOKEN is damaged", "TOKEN is missing"):
        with pytest.raises(CorruptCheckpointError, match=match):
            saved(alive, 2, 2, head.manifest)
    assert [path.read_bytes() for path in (folder / "bad").iterdir()] == [damaged]
    assert LocalStore(folder).begin() > head.token + LOST_TOKENS
    with pytest.raises(StaleAttemptError):
        saved(alive, 2, 2, head.manifest)
    assert alive.head() == head


def test_a_lost_token_before_the_first_commit(store: LocalStore, folder: Path) -> None:
    store.begin()
    flip(folder / "TOKEN")
    assert store.begin() == LOST_TOKENS + 1


def test_a_lost_token_and_head_at_once(store: LocalStore, folder: Path) -> None:
    head = saved(store, 1, store.begin())
    flip(folder / "TOKEN")
    flip(folder / "HEAD")
    assert store.begin() == head.token + LOST_TOKENS + 1


@pytest.mark.parametrize("size", [0, 5])
def test_a_torn_chunk_is_written_again_and_kept_aside(store: LocalStore, folder: Path, size: int) -> None:
    token = store.begin()
    saved(store, 1, token)
    chunk, _ = store.put(memoryview(FROZEN))
    with chunk_file(folder, chunk).open("r+b") as file:
        file.truncate(size)
    assert store.put(memoryview(FROZEN)) == (chunk, len(FROZEN))
    saved(store, 2, token)
    assert content(store, chunk) == FROZEN
    assert [path.stat().st_size for path in (folder / "bad").iterdir()] == [size]


def test_all_lost_is_an_error_and_no_new_start(store: LocalStore, folder: Path) -> None:
    head = saved(store, 1, store.begin())
    flip(manifest_file(folder, head.manifest))
    for _ in range(2):
        with pytest.raises(CorruptCheckpointError, match=head.manifest):
            resolve(store)
    flip(folder / "HEAD")
    for _ in range(2):
        with pytest.raises(CorruptCheckpointError, match="To start over, remove the folder"):
            resolve(store)


def test_a_chunk_that_all_checkpoints_need_and_is_damaged(store: LocalStore, folder: Path) -> None:
    token = store.begin()
    first = saved(store, 1, token)
    second = staged(store, 2, token, first.manifest)
    store.commit(second)
    flip(chunk_file(folder, second.entries[0].chunks[0]))
    with pytest.raises(CorruptCheckpointError, match="No checkpoint is whole"):
        resolve(store)
    with pytest.raises(CorruptCheckpointError):
        verify(store, second)


def test_a_manifest_of_another_form_is_not_taken_for_damage(store: LocalStore, folder: Path) -> None:
    store.begin()
    content = b'{"form":2}'
    digest = store.put(memoryview(content))[0].sha256
    (folder / "m" / f"1-{digest}.json").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="this version cannot read"):
        store.manifest(digest)
    assert not list((folder / "bad").iterdir())


# --- collection -----------------------------------------------------------------------------------------------


def test_collection_removes_what_is_old_and_not_needed(folder: Path) -> None:
    store = LocalStore(folder, wall=hour_later)
    token = store.begin()
    heads = [saved(store, 1, token)]
    for step in (2, 3):
        heads.append(saved(store, step, token, heads[-1].manifest))
    before = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    freed = store.collect([heads[1].manifest])
    assert freed > sum(len(piece) for piece in state_at(1)[1:])
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) == before - freed
    for head, step in ((heads[1], 2), (heads[2], 3)):  # HEAD stays without being named
        assert contents(store, store.manifest(head.manifest)) == state_at(step)
    assert len(chunk_files(folder)) == 5
    assert store.collect([heads[1].manifest]) == 0


def test_collection_spares_files_of_others_that_are_younger_than_an_hour(store: LocalStore, folder: Path) -> None:
    first = saved(store, 1, store.begin())
    saved(store, 2, 1, first.manifest)
    files = sorted(folder.glob("[mc]*/**/*"))
    assert LocalStore(folder).collect([]) == 0
    later = LocalStore(folder)
    later.begin()
    assert later.collect([]) == 0
    assert sorted(folder.glob("[mc]*/**/*")) == files


@pytest.mark.parametrize("sweep", [False, True])
def test_what_an_attempt_saved_itself_is_collected_at_once(store: LocalStore, folder: Path, sweep: bool) -> None:
    token = store.begin()
    heads = [saved(store, 1, token)]
    for step in range(2, 9):
        heads.append(saved(store, step, token, heads[-1].manifest))
        again = staged(store, step + 1, token)  # of a save under way nothing goes, though no manifest names it yet
        assert store.collect([head.manifest for head in heads[-2:]], sweep=sweep) >= 0
        assert [len(content(store, chunk)) for chunk in sorted(again.chunks(), key=lambda chunk: chunk.sha256)]
        assert len(list((folder / "m").iterdir())) == 2
        assert len(chunk_files(folder)) == 1 + 2 * 2
    assert contents(store, store.manifest(heads[-2].manifest)) == state_at(7)


def test_a_chunk_that_came_back_for_another_s_checkpoint_stays(store: LocalStore, folder: Path) -> None:
    first = saved(store, 1, store.begin())
    chunk = store.manifest(first.manifest).entries[0].chunks[0]
    chunk_file(folder, chunk).unlink()
    later = LocalStore(folder)
    token = later.begin()
    second = saved(later, 2, token, first.manifest)  # writes it again
    saved(later, 3, token, second.manifest, pieces=[b"other"])
    assert later.collect([first.manifest]) > 0
    assert contents(later, later.manifest(first.manifest)) == state_at(1)


def test_a_save_under_way_loses_nothing_to_its_own_collection(folder: Path) -> None:
    store = LocalStore(folder, wall=hour_later)
    token = store.begin()
    first = saved(store, 1, token)
    saved(store, 2, token, first.manifest, pieces=[b"other"])
    again = staged(store, 3, token, first.manifest, pieces=state_at(1))  # finds the chunks of the first
    store.collect([])
    store.commit(again)
    assert contents(store, again) == state_at(1)


def test_bytes_that_put_finds_are_young_again(store: LocalStore, folder: Path) -> None:
    token = store.begin()
    first = saved(store, 1, token)
    second = saved(store, 2, token, first.manifest, pieces=[b"other"])
    start = time.time()
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (start - 2 * YOUNG, start - 2 * YOUNG))
    again = staged(store, 3, token, second.manifest, pieces=state_at(1))
    assert LocalStore(folder).collect([]) > 0  # another process: the first manifest goes, its chunks stay
    store.commit(again)
    assert contents(store, again) == state_at(1)


def test_a_chunk_that_vanished_during_a_save_keeps_head_where_it_is(store: LocalStore, folder: Path) -> None:
    """Another process with a clock of its own collects the chunks of a save under way."""
    token = store.begin()
    first = saved(store, 1, token)
    saved(store, 2, token, first.manifest, pieces=[b"other"])
    again = staged(store, 3, token, pieces=state_at(1))
    head = store.head()
    assert LocalStore(folder, wall=hour_later).collect([]) > 0
    with pytest.raises(CorruptCheckpointError, match="Save again"):
        store.commit(again)
    assert store.head() == head
    saved(store, 3, token, pieces=state_at(1))
    assert contents(store, again) == state_at(1)


@pytest.mark.parametrize("jump", [-1e9, 1e9], ids=["back", "forward"])
def test_a_clock_that_jumps_changes_nothing(folder: Path, jump: float) -> None:
    now = [time.time()]
    store = LocalStore(folder, wall=lambda: now[0])
    token = store.begin()
    first = saved(store, 1, token)
    manifest = staged(store, 2, token, first.manifest)
    now[0] += jump
    assert store.begin() == 2
    manifest = staged(store, 2, 2, first.manifest)
    store.collect([first.manifest])
    store.commit(manifest)
    store.collect([first.manifest])
    assert resolve(store) == manifest
    assert contents(store, store.manifest(first.manifest)) == state_at(1)


def test_a_damaged_manifest_stops_the_collection_before_anything_is_removed(folder: Path) -> None:
    store = LocalStore(folder, wall=hour_later)
    token = store.begin()
    first = saved(store, 1, token)
    second = saved(store, 2, token, first.manifest)
    saved(store, 3, token, second.manifest)
    flip(manifest_file(folder, second.manifest))
    chunks = chunk_files(folder)
    with pytest.raises(CorruptCheckpointError, match=second.manifest):
        store.collect([second.manifest])
    assert chunk_files(folder) == chunks
    assert manifest_file(folder, first.manifest).exists()
