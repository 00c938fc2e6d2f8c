"""stdout of containers: plain with one input at a time, marked line by line with several."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import pytest

from lorry.ids import call_bytes
from lorry.runtime import output
from lorry.runtime.output import MARK, ClosedInput, Output


@pytest.fixture
def stream() -> Iterator[Output]:
    Output.marked = True
    yield Output(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    Output.marked = False


def written(stream: Output) -> list[str]:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode().split("\n")[:-1]  # not splitlines: the mark is a line boundary to it


class As:
    """Write as an input that a container works on."""

    def __init__(self, call: str, lease: int) -> None:
        self.tokens = (output.current_call.set(call_bytes(call)), output.current_lease.set(lease))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        output.current_call.reset(self.tokens[0])
        output.current_lease.reset(self.tokens[1])


def test_a_printed_line_has_one_mark(stream: Output) -> None:
    with As("fc-00000000000000000000000000000001", 1):
        print("a", "b", 3, file=stream)
        print("two\nlines", file=stream)
        print(file=stream)
    assert written(stream) == [
        f"{MARK}fc-00000000000000000000000000000001{MARK}{text}" for text in ("a b 3", "two", "lines", "")
    ]


def test_lines_of_several_inputs_do_not_mix_even_of_one_call(stream: Output) -> None:
    with As("fc-00000000000000000000000000000001", 1):
        print("one ", end="", file=stream)
    with As("fc-00000000000000000000000000000001", 2):
        print("other ", end="", file=stream)
    with As("fc-00000000000000000000000000000001", 1):
        print("whole", file=stream)
    with As("fc-00000000000000000000000000000001", 2):
        print("line", file=stream)
    assert written(stream) == [
        f"{MARK}fc-00000000000000000000000000000001{MARK}one whole",
        f"{MARK}fc-00000000000000000000000000000001{MARK}other line",
    ]


def test_the_rest_of_a_line_comes_with_the_end_of_its_input(stream: Output) -> None:
    with As("fc-00000000000000000000000000000001", 1):
        print("no newline", end="", file=stream)
        assert written(stream) == []
        stream.end_line()
        stream.end_line()
    assert written(stream) == [f"{MARK}fc-00000000000000000000000000000001{MARK}no newline"]
    assert stream._parts() == {}


def test_of_a_progress_bar_the_last_state_is_kept(stream: Output) -> None:
    with As("fc-00000000000000000000000000000001", 1):
        for percent in range(100):
            print(f"\r{percent}%", end="", file=stream)
        assert len(stream._parts()[1]) < 10
        print(file=stream)
    assert written(stream) == [f"{MARK}fc-00000000000000000000000000000001{MARK}99%"]


def test_threads_of_the_user_write_unmarked(stream: Output) -> None:
    with As("fc-00000000000000000000000000000001", 1):
        thread = threading.Thread(target=lambda: print("free", file=stream))
        thread.start()
        thread.join()
    assert written(stream) == ["free"]


def test_with_one_input_at_a_time_nothing_is_marked(stream: Output) -> None:
    Output.marked = False
    with As("fc-00000000000000000000000000000001", 1):
        print("plain", file=stream)
    assert written(stream) == ["plain"]


def test_what_was_written_since_the_last_result_is_known(stream: Output) -> None:
    Output.dirty = False
    assert not output.flush()
    print("x", file=stream)
    assert output.flush()
    assert not output.flush()


def test_reading_the_keyboard_is_refused_with_a_way_out() -> None:
    from lorry.errors import InvalidError

    for read in (ClosedInput().readline, ClosedInput().read):
        with pytest.raises(InvalidError, match=r"\.local\(\)"):
            read()
