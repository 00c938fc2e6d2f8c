"""Lines as a dataset: files, folders and patterns, and what is in them."""

from __future__ import annotations

import copy
import json
import os
import threading
from pathlib import Path

import pytest

import lorry
from lorry.errors import InvalidError
from lorry.train import lines
from lorry.train.data import batches


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_lines_are_samples_and_blank_ones_are_not(tmp_path: Path) -> None:
    data = lorry.data.text(written(tmp_path / "a.txt", "\ufeffone\r\n\r\n\n  two \nthrée\n\n\nlast"))
    assert list(data) == ["one", "  two ", "thrée", "last"]
    assert len(data) == 4
    assert data[-1] == "last"
    assert data[1:3] == ["  two ", "thrée"]
    assert data.__getitems__([3, 0]) == ["last", "one"]
    with pytest.raises(IndexError):
        data[4]


@pytest.mark.parametrize("content", ["", "\n\n\r\n"])
def test_a_file_without_lines_is_an_empty_dataset(tmp_path: Path, content: str) -> None:
    data = lorry.data.text(written(tmp_path / "a.txt", content))
    assert len(data) == 0
    assert list(data) == []
    assert list(data.batches(epochs=3)) == []


def test_jsonl_gives_what_the_lines_say(tmp_path: Path) -> None:
    rows = [{"text": "a\nb", "label": 1}, [1, 2], "x", None]
    data = lorry.data.jsonl(written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n"))
    assert list(data) == rows


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    data = lorry.data.jsonl(written(tmp_path / "a.jsonl", '{"a": 1}\n{"a":\n'))
    assert data[0] == {"a": 1}
    with pytest.raises(InvalidError, match=r"a\.jsonl, line at byte 9: Expecting value"):
        data[1]


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    data = lorry.data.text(written(tmp_path / "a.txt", b"good\n\xff\n"))
    with pytest.raises(InvalidError, match=r"a\.txt, line at byte 5: .*utf-8"):
        data[1]


def test_a_folder_is_its_files_of_that_kind_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md", "empty.txt", "sub/d.txt", "[x].txt"):
        written(tmp_path / "[data]" / name, "" if name == "empty.txt" else name)
    assert list(lorry.data.text(tmp_path / "[data]")) == ["[x].txt", "a.txt", "b.txt"]


def test_a_pattern_is_what_it_matches(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/d.txt", "sub/e.md"):
        written(tmp_path / name, name)
    data = lorry.data.text(tmp_path / "**/*.txt")
    assert list(data) == ["a.txt", "b.txt", "sub/d.txt"]
    assert [file.name for file in data.files] == ["a.txt", "b.txt", "sub/d.txt"]


@pytest.mark.parametrize("name", ["missing.txt", "none/*.txt", ""])
def test_a_path_that_is_nothing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError, match="is no file, and matches none"):
        lorry.data.text(tmp_path / name if name else tmp_path)


def test_more_files_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_OPEN", 3)
    for number in range(10):
        written(tmp_path / f"{number}.txt", f"{number}a\n{number}b\n")
    data = lorry.data.text(tmp_path)
    wanted = [f"{number}{letter}" for number in range(10) for letter in "ab"]
    before = len(os.listdir("/proc/self/fd"))
    assert data.__getitems__(range(20)) == wanted
    assert data.__getitems__(range(19, -1, -1)) == wanted[::-1]
    assert len(os.listdir("/proc/self/fd")) <= before + 3 * 3


def test_threads_may_read_the_same_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_OPEN", 2)
    for number in range(6):
        written(tmp_path / f"{number}.txt", "".join(f"{number}-{line}\n" for line in range(50)))
    data = lorry.data.text(tmp_path)
    wanted = [f"{number}-{line}" for number in range(6) for line in range(50)]
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda k=k: found.append([data[i * 7 % 300] for i in range(k, k + 300)]))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([wanted[i * 7 % 300] for i in range(k, k + 300)] for k in range(4))


def test_a_copy_in_another_process_opens_the_files_itself(tmp_path: Path) -> None:
    data = lorry.data.text(written(tmp_path / "a.txt", "one\ntwo\n"))
    assert data[0] == "one"
    assert copy.deepcopy(data).__dict__["_open"] == {}  # as pickle does it
    assert copy.deepcopy(data)[1] == "two"


def test_a_file_that_changes_while_it_is_read_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "one\ntwo\n")
    data = lorry.data.text(path)
    assert data[0] == "one"
    os.truncate(path, 0)
    with pytest.raises(InvalidError, match=r"a\.txt is not the file any more that was indexed"):
        data[1]


def test_a_file_that_is_renamed_over_stays_what_it_was(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "one\ntwo\n")
    data = lorry.data.text(path)
    assert data[0] == "one"
    written(tmp_path / "new", "other\n").replace(path)
    assert list(data) == ["one", "two"]


def test_a_line_of_a_gigabyte_is_a_sample(tmp_path: Path) -> None:
    """In a file with a hole, so that it takes no disk."""
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        file.write(b"first\n")
        file.seek(1 << 30, os.SEEK_CUR)
        file.write(b"\nlast")
    data = lorry.data.text(path)
    assert len(data) == 3
    assert data.__getitems__([0, 2]) == ["first", "last"]
    assert len(data[1]) == 1 << 30


def test_run_data_takes_a_path_too(tmp_path: Path) -> None:
    text = written(tmp_path / "a.txt", "1\n")
    rows = written(tmp_path / "a.jsonl", "1\n")
    assert list(batches(str(text))) == [["1"]]
    assert list(batches(rows)) == [[1]]
