"""Exceptions as data: what comes back is the exception, its story and its place in the user's own files."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest

from lorry import errors
from lorry.wire import failures
from lorry.wire.codec import from_json, to_json
from lorry.wire.failures import Failure, capture, rebuild


class Plain(Exception):
    pass


class NeedsTwo(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first}-{second}")


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class Surly(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(problem: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        if cause is None:
            raise problem
        raise problem from cause
    except BaseException as caught:
        return caught


def travelled(problem: BaseException) -> BaseException:
    return rebuild(from_json(Failure, to_json(capture(problem))))


def test_type_arguments_and_notes_come_back() -> None:
    problem = raised(Plain("a", 3))
    problem.add_note("look there")
    back = travelled(problem)
    assert type(back) is Plain
    assert back.args == ("a", 3)
    assert back.__notes__ == ["look there"]


def test_the_rebuilt_traceback_has_the_files_lines_and_names() -> None:
    def inner() -> None:
        raise Plain("here")

    def outer() -> None:
        inner()

    try:
        outer()
    except Plain as problem:
        wanted = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(problem.__traceback__)]
        found = traceback.extract_tb(travelled(problem).__traceback__)
    assert [(f.filename, f.lineno, f.name) for f in found] == wanted
    assert found[-1].line == 'raise Plain("here")'


@pytest.mark.parametrize("line", [1, 2, 127, 128, 300, 65_536, 10**6])
def test_any_line_number_is_kept(line: int) -> None:
    failure = Failure(
        type_name="E", text="", pickled=None, frames=(failures.Frame(file="/no/file.py", line=line, name="f g<x>"),)
    )
    (frame,) = traceback.extract_tb(rebuild(failure).__traceback__)
    assert (frame.filename, frame.lineno, frame.name) == ("/no/file.py", line, "f g<x>")


def test_paths_are_mapped_to_this_machine() -> None:
    failure = capture(raised(Plain()))
    back = rebuild(failure, lambda file: "/mine/" + Path(file).name)
    assert traceback.extract_tb(back.__traceback__)[0].filename == f"/mine/{Path(__file__).name}"


def test_frames_of_the_platform_are_left_out() -> None:
    assert capture(raised(Plain()), lambda file: file == __file__).frames == ()


def test_causes_and_contexts_come_along() -> None:
    back = travelled(raised(Plain("outer"), raised(KeyError("inner"))))
    assert isinstance(back.__cause__, KeyError)
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise Plain("second")  # noqa: B904 - the context is what is tested
    except Plain as problem:
        back = travelled(problem)
    assert back.__cause__ is None
    assert isinstance(back.__context__, KeyError)
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise Plain("second") from None
    except Plain as problem:
        assert capture(problem).cause is None


def test_long_and_circular_chains_end() -> None:
    problem: BaseException = raised(Plain("0"))
    for number in range(1, 50):
        problem = raised(Plain(str(number)), problem)
    depth, link = 0, travelled(problem)
    while link.__cause__ is not None:
        depth, link = depth + 1, link.__cause__
    assert depth == failures.MAX_CHAIN
    one, two = Plain("1"), Plain("2")
    one.__cause__, two.__cause__ = two, one
    assert isinstance(travelled(one), Plain)


def test_deep_recursion_keeps_the_innermost_frames() -> None:
    def dive(depth: int) -> None:
        if depth == 0:
            raise Plain
        dive(depth - 1)

    try:
        dive(200)
    except Plain as problem:
        failure = capture(problem)
    assert len(failure.frames) == failures.MAX_FRAMES
    assert failure.frames[-1].name == "dive"


def test_what_cannot_be_pickled_keeps_its_text_and_notes() -> None:
    problem = raised(HoldsLock())
    problem.add_note("a hint")
    back = travelled(problem)
    assert type(back) is errors.RemoteError
    assert "HoldsLock: locked" in str(back)
    assert back.__notes__ == ["a hint"]


def test_what_cannot_be_built_again_keeps_its_text() -> None:
    back = travelled(raised(NeedsTwo(1, 2)))
    assert type(back) is errors.RemoteError
    assert "NeedsTwo: 1-2" in str(back)


def test_a_class_that_is_not_here_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = capture(raised(Plain("far")))
    monkeypatch.delattr(sys.modules[__name__], "Plain")
    back = rebuild(failure)
    assert type(back) is errors.ExecutionError
    assert "Plain: far" in str(back)


def test_an_exception_without_a_text_still_travels() -> None:
    assert capture(raised(Surly())).text == "<its __str__ raised RuntimeError>"
    assert type(travelled(raised(Surly()))) is Surly


def test_an_exception_that_carries_an_array_comes_back_with_it() -> None:
    back = travelled(raised(Plain(np.arange(100_000))))
    assert type(back) is Plain
    assert back.args[0][-1] == 99_999


def test_exception_groups_come_back_with_their_members() -> None:
    back = travelled(raised(ExceptionGroup("several", [KeyError("a"), Plain("b")])))
    assert isinstance(back, ExceptionGroup)
    assert [type(each) for each in back.exceptions] == [KeyError, Plain]


def test_keyboard_interrupts_and_exits_travel_too() -> None:
    assert isinstance(travelled(raised(SystemExit(3))), SystemExit)


def test_a_huge_text_keeps_both_ends() -> None:
    text = capture(raised(Plain("a" * 10**6 + "z"))).text
    assert len(text) < 2 * failures.MAX_TEXT
    assert text[0] == "a"
    assert text[-1] == "z"


def test_bytes_that_are_no_exception_become_a_remote_error() -> None:
    failure = Failure(type_name="E", text="t", pickled="bm9uc2Vuc2U=", frames=())
    assert type(rebuild(failure)) is errors.RemoteError
    assert "Traceback" in failures.describe(failure)
