from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.images.runner import DirectRunner, LineSplitter


async def run(code: str, lines: list[str]) -> int:
    return await DirectRunner().run([sys.executable, "-I", "-u", "-c", code], {}, (), (), lines.append)


def test_lines_of_both_streams_and_the_exit_status_come_back() -> None:
    lines: list[str] = []
    status = asyncio.run(run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", lines))
    assert (status, lines) == (3, ["out", "err"])


def test_only_the_given_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "1")
    lines: list[str] = []
    asyncio.run(run("import os; print('CANARY' in os.environ)", lines))
    assert lines == ["False"]


def test_cancelling_kills_the_whole_group(tmp_path: Path) -> None:
    """The grandchild holds a pipe; its end of file proves that it is gone, without asking for its pid."""
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    code = (
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', \"f = open({str(fifo)!r}, 'w'); f.write('x'); f.flush(); "
        'import time; time.sleep(600)"]).wait()'
    )

    async def scenario() -> None:
        task = asyncio.create_task(run(code, []))
        with await asyncio.to_thread(open, fifo) as reader:
            assert await asyncio.to_thread(reader.read, 1) == "x"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(reader.read) == ""

    asyncio.run(scenario())


def test_a_daemon_that_keeps_the_output_open_is_ended_with_its_command() -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print('done')"
    lines: list[str] = []
    assert asyncio.run(run(code, lines)) == 0
    assert lines == ["done"]


def test_colours_and_redrawn_lines_become_plain_lines() -> None:
    lines: list[str] = []
    splitter = LineSplitter(lines.append)
    splitter.feed(b"\x1b[1mbold\x1b[0m\n50%\r100%\r\nna\xc3")
    splitter.feed(b"\xafve\n\n\xff end")
    splitter.close()
    assert lines == ["bold", "50%", "100%", "naïve", "\ufffd end"]


def test_a_line_without_end_is_told_piece_by_piece() -> None:
    lines: list[str] = []
    splitter = LineSplitter(lines.append)
    for _ in range(100):
        splitter.feed(b"x" * 10_000)
    assert max(map(len, lines)) < 100_000
    splitter.close()
    assert sum(map(len, lines)) == 1_000_000


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x1b"), min_size=1)), st.data())
def test_how_the_bytes_are_cut_does_not_matter(texts: list[str], data: st.DataObject) -> None:
    expected = [text.rstrip() for text in texts if text.rstrip()]
    raw = "".join(text + "\n" for text in texts).encode()
    lines: list[str] = []
    splitter = LineSplitter(lines.append)
    position = 0
    while position < len(raw):
        size = data.draw(st.integers(1, len(raw) - position))
        splitter.feed(raw[position : position + size])
        position += size
    splitter.close()
    assert lines == expected
