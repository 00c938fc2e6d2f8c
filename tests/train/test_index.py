"""Where lines begin: every shape of a file, kept once, never wrong."""

from __future__ import annotations

import hashlib
import io
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorry.errors import InvalidError, ResourceError
from lorry.train import index
from lorry.train.index import NUMBER, LineIndex, open_index, write_index
from lorry.train.sources import MappedFile, Version

FINDERS = [index._find, index._find_with_numpy]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lorry" / "lines"


def version(path: Path) -> Version:
    with path.open("rb") as file:
        return Version.of(str(path), file.fileno())


def indexed(path: Path) -> LineIndex:
    found = version(path)
    return open_index(found, MappedFile(found))


def lines_of(data: bytes) -> list[bytes]:
    """The definition, in slow words."""
    text = data.removeprefix(b"\xef\xbb\xbf")
    return [line for raw in text.split(b"\n") if (line := raw.rstrip(b"\r") if raw == b"\r" else raw)]


def read_all(data: bytes, find: index.Finder) -> list[bytes]:
    out, source = io.BytesIO(), io.BytesIO(data)
    write_index(lambda _, buffer: source.readinto(buffer), out, find)
    kept = out.getvalue()
    assert kept[-32:] == hashlib.sha256(data).digest()
    starts = [number for (number,) in NUMBER.iter_unpack(kept[:-32])]
    assert starts[-1] == len(data)
    return [data[a:b] for a, b in pairwise(starts)]


@pytest.mark.parametrize("find", FINDERS)
@given(data=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\0"])).map(b"".join))
@example(data=b"")
@example(data=b"\n")
@example(data=b"\r\n\r\n")
@example(data=b"no newline")
@example(data=b"a\r\n\r\nb\r\n")
@example(data=b"\xef\xbb\xbfa\nb")
@example(data=b"a\n\r")
def test_lines_are_found_whatever_the_blocks(find: index.Finder, data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for size in (4, 5, 7, 1 << 20):
            patch.setattr(index, "BLOCK", size)
            found = [line.rstrip(b"\r\n") for line in read_all(data, find)]
            assert found == [line.rstrip(b"\r") for line in lines_of(data)]


def test_an_index_is_made_once_and_then_mapped(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n\nthree")
    first = indexed(path)
    monkeypatch.setattr(index, "write_index", None)
    again = indexed(path)
    assert first.count == again.count == 3
    assert list(again.starts) == [0, 4, 9, 14]
    assert again.sha256 == hashlib.sha256(b"one\ntwo\n\nthree").hexdigest()
    assert [entry.stat().st_size for entry in cache.iterdir()] == [8 * 4 + 32]


def test_another_version_gets_another_index_and_the_old_one_goes(tmp_path: Path, cache: Path) -> None:
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_bytes(b"one\n")
    other.write_bytes(b"one\n")
    indexed(other)
    old = indexed(path)
    with path.open("ab") as file:
        file.write(b"two\n")
    assert indexed(path).count == 2
    assert old.count == 1
    assert list(old.starts) == [0, 4]  # whoever has it mapped keeps it
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda kept: b"", lambda kept: kept[:-1], lambda kept: kept[8:-8], lambda kept: kept[:-40]]
)
def test_an_index_that_is_not_whole_is_made_again(tmp_path: Path, cache: Path, damage: object) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\n")
    indexed(path)
    kept = next(cache.iterdir())
    kept.write_bytes(damage(kept.read_bytes()))  # type: ignore[operator]
    assert indexed(path).count == 2


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n")
    place = cache / f"{version(path).key}.lines"
    cache.mkdir(parents=True)
    young, old = place.with_name(f"{place.name}.young"), place.with_name(f"{place.name}.old")
    young.touch()
    old.touch()
    os.utime(old, (1, 1))
    indexed(path)
    assert set(cache.iterdir()) == {place, young}


def test_a_file_that_grows_while_it_is_indexed_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n")

    def growing(*arguments: object) -> None:
        write_index(*arguments)  # type: ignore[arg-type]
        path.write_bytes(b"one\ntwo\n")

    monkeypatch.setattr(index, "write_index", growing)
    with pytest.raises(InvalidError, match="changed while it was indexed"):
        indexed(path)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    with pytest.raises(ResourceError, match="XDG_CACHE_HOME"):
        indexed(path)
