"""stdout and stderr of user code: line-buffered pipes to the server, and the input they belong to.

The server knows which call a container works on, so the pipe carries plain bytes. Only with several inputs at
once each line is preceded by a mark, U+001E call U+001E, that the server takes off again.
"""

from __future__ import annotations

import contextvars
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lorry.ids import call_name

MARK = "\x1e"

current_call: contextvars.ContextVar[bytes] = contextvars.ContextVar("lorry_current_call", default=b"")
current_lease: contextvars.ContextVar[int] = contextvars.ContextVar("lorry_current_lease", default=0)
current_input: contextvars.ContextVar[Sequence[Any]] = contextvars.ContextVar("lorry_current_input", default=(0, 0))
"""Chunk and index; the runner's own list, which it writes into."""


class Output(io.TextIOWrapper):
    """sys.stdout or sys.stderr of a container."""

    dirty = False
    """Something was written since the last result."""
    marked = False

    def write(self, text: str) -> int:
        Output.dirty = True
        if Output.marked and (call := current_call.get()):
            self._write_marked(call_name(call), text)
            return len(text)
        return super().write(text)

    def _write_marked(self, call: str, text: str) -> None:
        """Whole lines only: `print` writes a line in several pieces, and other inputs write between them."""
        key = current_lease.get()
        *lines, rest = (self._parts().pop(key, "") + text).split("\n")
        if lines:
            super().write("".join(f"{MARK}{call}{MARK}{line}\n" for line in lines))
        if rest:
            self._parts()[key] = rest.rpartition("\r")[2] or rest  # of a bar, only what it shows now

    def _parts(self) -> dict[int, str]:
        """By lease: what its input wrote since its last newline."""
        return vars(self).setdefault("_open_lines", {})  # type: ignore[no-any-return]

    def end_line(self) -> None:
        """The current input is answered: what it wrote without a newline is a line too."""
        if self._parts().get(current_lease.get()):
            self._write_marked(call_name(current_call.get()), "\n")


class ClosedInput(io.TextIOBase):
    """stdin of a container: reading it says what to do instead."""

    def _refuse(self, *_arguments: Any) -> NoReturn:
        from lorry.errors import InvalidError

        raise InvalidError(
            "a container has no keyboard: input() and breakpoint() cannot work here. Run the function in your "
            "terminal with .local(), or open a shell in its container with `lorry shell`"
        )

    read = readline = readlines = __next__ = _refuse

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0


def install(concurrent: bool) -> None:
    """Put them in place of the interpreter's own."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = io.FileIO(number, "w", closefd=False)
        stream = Output(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    Output.marked = concurrent
    sys.stdin = ClosedInput()
    sys.breakpointhook = ClosedInput()._refuse


def flush() -> bool:
    """Push out what is buffered. True if anything was written since the last time."""
    if not Output.dirty:
        return False
    Output.dirty = False
    for stream in (sys.stdout, sys.stderr):
        try:
            if Output.marked and isinstance(stream, Output):
                stream.end_line()
            stream.flush()
        except (OSError, ValueError):  # the user closed it
            os.environ.setdefault("LORRY_OUTPUT_CLOSED", "1")
    return True
