"""A remote exception as data, and back: type, arguments, notes, causes, and a traceback made of real frames.

`capture` runs in the container, `rebuild` in the client. The rebuilt traceback names the user's own files
(container paths are mapped back), so a terminal shows the source lines as if the code had run here.
"""

from __future__ import annotations

import base64
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorry import errors
from lorry.wire import pickling

MAX_FRAMES = 64
MAX_CHAIN = 8
MAX_TEXT = 64 * 1024
"""Characters of a message that travel: its two ends."""
MAX_PICKLED = 4 << 20
"""Bytes of an exception object that travel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    file: str
    line: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    type_name: str
    text: str
    pickled: str | None
    """Base64 of the exception itself; None when it could not be pickled."""
    frames: tuple[Frame, ...]
    cause: Failure | None = None
    explicit: bool = False
    """`raise … from cause`, rather than an error while handling another."""
    notes: tuple[str, ...] = ()
    """What `add_note` said; the pickled exception has them too."""


def capture(problem: BaseException, skip: Callable[[str], bool] = lambda _file: False, depth: int = 0) -> Failure:
    """`skip(file)` tells which frames belong to the platform and are left out."""
    linked = problem.__cause__
    if linked is None and not problem.__suppress_context__:
        linked = problem.__context__
    frames = [frame for frame in _frames(problem.__traceback__) if not skip(frame.file)]
    return Failure(
        type_name=f"{type(problem).__module__}.{type(problem).__qualname__}".removeprefix("builtins."),
        text=_text(problem),
        pickled=_pickled(problem),
        frames=tuple(frames[-MAX_FRAMES:]),
        cause=capture(linked, skip, depth + 1) if linked is not None and depth < MAX_CHAIN else None,
        explicit=problem.__cause__ is not None,
        notes=tuple(str(note) for note in getattr(problem, "__notes__", ())),
    )


def _pickled(problem: BaseException) -> str | None:
    try:
        data, _ = pickling.dumps(problem, whole=True)
    except BaseException:  # the user's __reduce__ may raise anything
        return None
    return base64.b64encode(data).decode() if len(data) <= MAX_PICKLED else None


def _text(problem: BaseException) -> str:
    try:
        text = str(problem)
    except BaseException as broken:
        return f"<its __str__ raised {type(broken).__name__}>"
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters left out) … {text[-half:]}"


def _frames(traceback: types.TracebackType | None) -> list[Frame]:
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(Frame(file=code.co_filename, line=traceback.tb_lineno, name=code.co_name))
        traceback = traceback.tb_next
    return frames


def rebuild(failure: Failure, local_path: Callable[[str], str] = lambda file: file) -> BaseException:
    """The exception to raise here. Never raises itself: what cannot be rebuilt becomes RemoteError or
    ExecutionError with the remote text."""
    problem = _revive(failure)
    problem.__traceback__ = _fake_traceback(failure.frames, local_path)
    if not hasattr(problem, "__notes__"):
        for note in failure.notes:
            problem.add_note(note)
    if failure.cause is not None:
        linked = rebuild(failure.cause, local_path)
        if failure.explicit:
            problem.__cause__ = linked
        else:
            problem.__context__ = linked
    return problem


def _revive(failure: Failure) -> BaseException:
    told = f"{failure.type_name}: {failure.text}"
    if failure.pickled is None:
        return errors.RemoteError(f"{told} (the exception itself could not be pickled, or is too large)")
    try:
        value = pickling.loads([base64.b64decode(failure.pickled)])
    except (ImportError, AttributeError) as missing:
        return errors.ExecutionError(f"{told} (its class cannot be imported here: {missing})")
    except Exception as broken:
        return errors.RemoteError(f"{told} (it cannot be rebuilt here: {type(broken).__name__}: {broken})")
    return value if isinstance(value, BaseException) else errors.RemoteError(told)


def _fake_traceback(frames: tuple[Frame, ...], local_path: Callable[[str], str]) -> types.TracebackType | None:
    traceback: types.TracebackType | None = None
    for frame in reversed(frames):
        traceback = types.TracebackType(traceback, _fake_frame(frame, local_path(frame.file)), 0, frame.line)
    return traceback


def _fake_frame(frame: Frame, file: str) -> types.FrameType:
    """A frame object with the given file, line and function name: code that raises, run once."""
    code = compile("raise RuntimeError", file, "exec")
    code = code.replace(
        co_name=frame.name,
        co_qualname=frame.name,
        co_firstlineno=frame.line,
        co_linetable=_one_line(len(code.co_code) // 2),
    )
    try:
        exec(code, {"__name__": frame.name, "__file__": file})  # noqa: S102 - a constant statement
    except RuntimeError as raised:
        inner = raised.__traceback__ and raised.__traceback__.tb_next
        if inner is not None:
            return inner.tb_frame
    raise AssertionError("unreachable")


def _one_line(units: int) -> bytes:
    """A location table (CPython's Objects/locations.md) that puts all code units on the first line, without columns:
    those of our stand-in would underline the wrong part of the user's source."""
    table = bytearray()
    while units > 0:
        length = min(8, units)
        table += bytes((0x80 | 13 << 3 | length - 1, 0))
        units -= length
    return bytes(table)


def plain(failure: Failure) -> dict[str, Any]:
    """As JSON-able data."""
    from lorry.wire.codec import to_plain

    return dict(to_plain(failure))


def describe(failure: Failure) -> str:
    """The text of a traceback, as Python prints it."""
    lines = [describe(failure.cause) + "\n"] if failure.cause else []
    lines.append("Traceback (most recent call last):")
    lines += [f'  File "{f.file}", line {f.line}, in {f.name}' for f in failure.frames]
    lines.append(f"{failure.type_name}: {failure.text}" if failure.text else failure.type_name)
    return "\n".join(lines)
