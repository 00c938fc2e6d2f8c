"""Output becomes lines whatever pieces it comes in; files stay within their limit."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_peers import FakePeer, open_descriptors
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.clock import ManualClock
from lorry.server import logs
from lorry.server.logs import MARK, MAX_LINE, LineAssembler, LogStore, OutputPump


def lines_of(data: bytes, cuts: list[int]) -> list[str]:
    assembler, found, start = LineAssembler(), [], 0
    for cut in sorted(cut % (len(data) + 1) for cut in cuts):
        found += assembler.feed(data[start:cut])
        start = cut
    return found + assembler.feed(data[start:], final=True)


plain_bytes = st.lists(st.sampled_from([b"a", b"\n", "é€🚚".encode(), b"\xff", b"\xe2\x82", b" x"]), max_size=30).map(
    b"".join
)


@settings(deadline=None)
@given(plain_bytes, st.lists(st.integers(0, 200), max_size=10))
def test_any_split_gives_the_same_lines(data: bytes, cuts: list[int]) -> None:
    text = data.decode("utf-8", "backslashreplace")
    wanted = text.removesuffix("\n").split("\n") if text else []
    assert lines_of(data, cuts) == wanted
    assert lines_of(data, list(range(len(data)))) == wanted


def test_windows_line_ends_are_line_ends() -> None:
    assert lines_of(b"one\r\ntwo\r\n", []) == ["one", "two"]
    assert [x for x in lines_of(b"one\r\ntwo\r\n", list(range(10))) if not x.endswith("\r")] == ["one", "two"]


@pytest.mark.parametrize("style", [b"\r%d%%", b"%d%%\r"])
def test_a_progress_bar_is_shown_while_it_is_drawn_and_ends_as_one_line(style: bytes) -> None:
    assembler = LineAssembler()
    shown = [line for percent in (10, 50, 99) for line in assembler.feed(style % percent)]
    assert all(line.endswith("\r") for line in shown)
    assert [line.rstrip("\r") for line in shown][-1] in ("50%", "99%")
    assert assembler.feed(b"\n") == ["99%"]
    assert assembler.feed(b"", final=True) == []


def test_a_bar_without_end_keeps_nothing_but_what_it_shows() -> None:
    assembler = LineAssembler()
    for percent in range(20_000):
        assembler.feed(b"\r%d%%" % percent)
    assert len(assembler._rest) < 20


def test_huge_lines_are_folded_and_nothing_is_lost() -> None:
    found = lines_of(b"y" * (3 * MAX_LINE + 5) + b"\nend", [1000, 50_000])
    assert all(len(line) <= MAX_LINE for line in found)
    assert "".join(found) == "y" * (3 * MAX_LINE + 5) + "end"
    assert found == lines_of(b"y" * (3 * MAX_LINE + 5) + b"\nend", [])
    assert lines_of(b"y" * MAX_LINE + b"\nend", [7]) == ["y" * MAX_LINE, "", "end"]


def test_half_a_character_at_the_end_is_shown_as_bytes() -> None:
    assert lines_of("€".encode()[:2], []) == ["\\xe2\\x82"]


# Pump


def pumped(data: bytes, errors: bytes = b"") -> list[tuple[int, str | None, list[str]]]:
    async def main() -> list[tuple[int, str | None, list[str]]]:
        found: list[tuple[int, str | None, list[str]]] = []
        pipes = [os.pipe(), os.pipe()]
        for (reader, writer), content in zip(pipes, (data, errors), strict=True):
            os.set_blocking(reader, False)
            os.write(writer, content)
            os.close(writer)
        loop = asyncio.get_running_loop()
        pump = OutputPump(loop, (pipes[0][0], pipes[1][0]), lambda s, c, x: found.append((s, c, x)))
        await asyncio.wait_for(pump.ended, 5)
        for reader, _ in pipes:
            os.close(reader)
        return found

    return asyncio.run(main())


def test_both_streams_are_read_to_their_ends() -> None:
    assert sorted(pumped(b"a\nb", b"c\n")) == [(1, None, ["a"]), (1, None, ["b"]), (2, None, ["c"])]


def test_marks_tell_whose_line_it_is_and_are_taken_off() -> None:
    data = f"{MARK}fc-1{MARK}one\n{MARK}fc-1{MARK}two\n{MARK}fc-2{MARK}three\nfree\n{MARK}half\n".encode()
    assert pumped(data) == [
        (1, "fc-1", ["one", "two"]),
        (1, "fc-2", ["three"]),
        (1, None, ["free", f"{MARK}half"]),
    ]


def test_giving_up_reads_what_is_there_first() -> None:
    async def main() -> list[str]:
        found: list[str] = []
        (out, out_writer), (err, err_writer) = os.pipe(), os.pipe()
        for fd in (out, err):
            os.set_blocking(fd, False)
        pump = OutputPump(asyncio.get_running_loop(), (out, err), lambda _s, _c, lines: found.extend(lines))
        os.write(out_writer, b"whole\nhalf")
        pump.stop()
        assert pump.ended.done()
        for fd in (out, err, out_writer, err_writer):
            os.close(fd)
        return found

    assert asyncio.run(main()) == ["whole", "half"]


# Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    store = LogStore(tmp_path, ManualClock(), limit_mib=1)
    yield store
    for app_id in list(store.sizes()):
        store.close_app(app_id, {})


def texts(rows: list[Any]) -> list[str]:
    return [row["x"] for row in rows]


def test_lines_are_kept_with_their_container_call_and_stream(store: LogStore) -> None:
    store.append("ap-1", "ct-1", "fc-1", 2, ["one", "two"])
    store.append("ap-1", "ct-2", "", 1, ["three é"])
    assert texts(store.read("ap-1")) == ["one", "two", "three é"]
    assert texts(store.read("ap-1", tail=2)) == ["two", "three é"]
    (row,) = store.read("ap-1", lambda row: row["c"] == "ct-2")
    assert (row["k"], row["s"]) == ("", 1)
    assert store.read("ap-unknown") == []


def test_the_newest_output_stays_within_the_limit(store: LogStore, tmp_path: Path) -> None:
    for number in range(3000):
        store.append("ap-1", "c", "", 1, [f"{number} " + "x" * 1000])
    kept = texts(store.read("ap-1"))
    numbers = [int(text.split()[0]) for text in kept]
    assert numbers == list(range(numbers[0], 3000))
    assert 400 < len(numbers) < 1200
    assert sum(store.sizes().values()) < 1.2 * (1 << 20)


def test_a_line_torn_by_a_crash_is_passed_over(store: LogStore, tmp_path: Path) -> None:
    store.append("ap-1", "c", "", 1, ["whole"])
    with (tmp_path / "ap-1.jsonl").open("a") as file:
        file.write('{"t": 1, "x": "to')
    assert texts(store.read("ap-1")) == ["whole"]


def test_the_files_held_open_are_bounded(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_OPEN", 3)
    before = open_descriptors()
    for _ in range(2):
        for number in range(20):
            store.append(f"ap-{number}", "c", "", 1, ["line"])
    assert open_descriptors() <= before + 3
    for number in range(20):
        assert texts(store.read(f"ap-{number}")) == ["line", "line"]
        store.close_app(f"ap-{number}", {})
        store.delete(f"ap-{number}")
    assert open_descriptors() == before
    assert store.sizes() == {}


def test_followers_get_lines_and_the_end_and_may_leave(store: LogStore) -> None:
    one, two = FakePeer(), FakePeer()
    store.follow("ap-1", one, 7)  # type: ignore[arg-type]
    store.follow("ap-1", two, 8)  # type: ignore[arg-type]
    store.append("ap-1", "c", "", 1, ["x"])
    store.unfollow(two)  # type: ignore[arg-type]
    store.close_app("ap-1", {"reason": "over"})
    assert [(n, list(v)) for n, v in one.events] == [(7, ["lines"]), (7, ["end"])]
    assert [n for n, _ in two.events] == [8]
    assert store._subscribers == {}


def test_a_follower_that_does_not_read_skips_lines_and_is_told(store: LogStore) -> None:
    peer = FakePeer()
    store.follow("ap-1", peer, 7)  # type: ignore[arg-type]
    peer.backlog = logs.MAX_BEHIND + 1
    store.append("ap-1", "c", "", 1, ["a", "b"])
    assert peer.events == []
    peer.backlog = 0
    store.append("ap-1", "c", "", 1, ["c"])
    assert "2 lines were not shown" in peer.events[0][1]["lines"][0]["x"]
    assert peer.events[0][1]["lines"][1]["x"] == "c"


def pages(store: LogStore, container: str = "sb-1", place: tuple[int, int] = (0, 0)) -> tuple[str, tuple[int, int]]:
    """All that is there now, as one text, and the place behind it."""
    found, end = [], False
    while not end:
        lines, place, end = store.page("ap-1", container, 1, place)
        found += lines
    return "".join(found), place


def test_a_reader_gets_each_line_of_its_container_once_and_as_it_was_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "PAGE", 40_000)
    store = LogStore(tmp_path, ManualClock(), limit_mib=1)
    assembler = LineAssembler()

    def output(text: str) -> None:
        store.append("ap-1", "sb-1", "", 1, assembler.feed(text.encode()))
        store.append("ap-1", "sb-2", "", 1, ["of another one"])
        store.append("ap-1", "sb-1", "", 2, ["of the other stream"])

    assert pages(store) == ("", logs.BEGINNING)
    first = "short\n" + "x" * 70_000 + "\n" + "y" * MAX_LINE + "\n"
    output(first)
    text, place = pages(store)
    assert text == first
    output("50%\r")
    output("99%\rdone\n")
    text, place = pages(store, place=place)
    assert text.endswith("done\n")
    assert "50%\n" not in text
    assert pages(store, place=place) == ("", place)
    assert pages(store, "sb-2")[0] == "of another one\n" * 3
    store.close_app("ap-1", "")


def test_a_reader_goes_on_behind_a_file_that_was_put_away_and_with_the_oldest_line_when_it_is_gone(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    store = LogStore(tmp_path, clock, limit_mib=1)
    line = "z" * 10_000
    written, seen, place = 0, 0, logs.BEGINNING
    while not (tmp_path / "ap-1.old").exists():
        clock.advance(1.0)
        store.append("ap-1", "sb-1", "", 1, [line])
        written += 1
        seen += len((part := pages(store, place=place))[0]) // 10_001
        place = part[1]
    store.append("ap-1", "sb-1", "", 1, [line])
    assert seen + len(pages(store, place=place)[0]) // 10_001 == written + 1
    for _ in range(2 * written):
        clock.advance(1.0)
        store.append("ap-1", "sb-1", "", 1, [line])
        if store.has_lost("ap-1", logs.BEGINNING, 0.0):
            break
        assert not store.has_lost("ap-1", place, 0.0)
    assert store.has_lost("ap-1", place, 0.0)
    assert not store.has_lost("ap-1", logs.BEGINNING, time.time() + 1)
    kept = pages(store)[0]
    assert pages(store, place=place)[0] == kept
    assert 0 < len(kept) // 10_001 < 3 * written
    store.close_app("ap-1", "")
