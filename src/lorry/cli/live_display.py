"""The display on a terminal: output scrolls, and below it stands a block of progress bars and one status line.

Written with a handful of control codes instead of `rich.live`: importing that costs 40 ms of every run, and a
terminal that is stopped (Ctrl-S) or slow would stop the run through its lock. Here only output of containers
waits for the terminal; redraws and the platform's own words are left out when it takes nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from lorry.cli import units
from lorry.sdk.display import PlainDisplay, shown_text, write_whole

PERIOD = 0.1
"""Seconds between redraws."""
QUIET_START = 0.25
"""A run that is over by then shows no block at all: a flash tells nothing."""
MAX_BARS = 4
"""Bars of containers (tqdm and the like) shown at once."""
PATIENCE = 0.5
"""Seconds that a word of the platform waits for a terminal that takes nothing; then it is left out."""


class BlockLine(Protocol):
    """Of the block: asked for its text at each redraw."""

    def text(self, columns: int) -> str: ...


class Bar:
    """A map's progress. The mapping thread stores two numbers; drawing happens elsewhere."""

    def __init__(self, display: LiveDisplay, name: str) -> None:
        self._display = display
        self._name = name
        self._began = time.monotonic()
        self._finished = 0
        self._total: int | None = None

    def update(self, finished: int, total: int | None) -> None:
        self._finished, self._total = finished, total

    def close(self) -> None:
        self._display.bars.discard(self)

    def text(self, columns: int) -> str:
        return bar_text(self._name, self._finished, self._total, time.monotonic() - self._began, columns)


def bar_text(name: str, finished: int, total: int | None, seconds: float, columns: int) -> str:
    """`square ━━━━━━──── 60/100 0:04 left` in at most `columns` cells."""
    if not total:
        rate = f" {finished / seconds:,.0f}/s" if seconds > 1 else ""
        return f"{name} {finished:,} done{rate}"
    left = seconds / finished * (total - finished) if finished else None
    tail = f" {finished:,}/{total:,}" + (f" {units.clock(left)} left" if left is not None else "")
    width = max(0, min(40, columns - len(name) - len(tail) - 1))
    filled = width * min(finished, total) // total
    return f"{name} {'━' * filled}{'─' * (width - filled)}{tail}"


class Guarded:
    """Stands for sys.stdout or sys.stderr: the program's own prints move the block out of their way."""

    def __init__(self, display: LiveDisplay, stream: TextIO) -> None:
        self._display = display
        self._stream = stream

    def write(self, text: str) -> int:
        with self._display.above():
            self._display.half_line = not text.endswith("\n") if text else self._display.half_line
            return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._display.above():
            self._stream.flush()
            self._display.half_visible = self._display.half_line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class LiveDisplay(PlainDisplay):
    """Use as a context manager: it takes sys.stdout and sys.stderr over, and gives them back."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour
        self._out, self._err = sys.stdout, sys.stderr
        self._terminal = threading.RLock()
        self._drawn: list[str] = []
        self._redrawn: dict[tuple[str, int], str] = {}
        self._status: tuple[int, int] | None = None
        self._began = time.monotonic()
        self._over = threading.Event()
        self._painter = threading.Thread(target=self._paint, name="lorry-screen", daemon=True)
        self.bars: set[BlockLine] = set()
        self.half_line = False
        """The program has written a line without its end: no block until it is whole."""
        self.half_visible = False

    def __enter__(self) -> LiveDisplay:
        sys.stdout, sys.stderr = Guarded(self, self._out), Guarded(self, self._err)
        self._painter.start()
        return self

    def __exit__(self, *_problem: object) -> None:
        self._over.set()
        with self._terminal:
            self._erase()
        sys.stdout, sys.stderr = self._out, self._err

    # Events

    def line(self, row: dict[str, Any]) -> None:
        source = (row["c"], row["s"])
        text = shown_text(row["x"])
        if text is None:
            self._redrawn[source] = row["x"].rstrip("\r").rpartition("\r")[2]
            return
        self._redrawn.pop(source, None)
        try:
            with self.above():
                if self.half_visible:
                    self._err.write("\n")
                    self.half_visible = False
                write_whole(self._err if row["s"] == 2 else self._out, text + "\n")
        except OSError:  # the terminal was closed
            self.reader_gone()

    def note(self, text: str) -> None:
        if not self._terminal.acquire(timeout=PATIENCE):
            return
        try:
            if takes_output(self._err, PATIENCE):
                self._erase()
                write_whole(self._err, (f"\x1b[2m{text}\x1b[0m" if self._colour else text) + "\n")
        except OSError:
            self.reader_gone()
        finally:
            self._terminal.release()

    def containers(self, ready: int, total: int, peak_mib: int) -> None:
        super().containers(ready, total, peak_mib)
        self._status = (ready, total)

    def progress(self, name: str) -> Bar:
        bar = Bar(self, name)
        self.bars.add(bar)
        return bar

    # The block

    @contextlib.contextmanager
    def above(self) -> Iterator[None]:
        """Write where the output ends; the block comes back below at the next redraw."""
        with self._terminal:
            self._erase()
            yield

    def _paint(self) -> None:
        while not self._over.wait(PERIOD):
            if time.monotonic() - self._began < QUIET_START:
                continue
            if not self._terminal.acquire(blocking=False):
                continue
            try:
                self._repaint()
            except OSError:
                return
            finally:
                self._terminal.release()

    def _repaint(self) -> None:
        columns = os.get_terminal_size(self._err.fileno()).columns - 1
        lines = [] if self.half_line or self._over.is_set() else self._block(columns)
        if lines != self._drawn and takes_output(self._err, 0):
            dim, plain = ("\x1b[2m", "\x1b[0m") if self._colour else ("", "")
            text = "\n".join(f"{dim}{line}{plain}" for line in lines)
            write_whole(self._err, erasing(len(self._drawn)) + text)
            self._drawn = lines

    def _block(self, columns: int) -> list[str]:
        lines = list(self._redrawn.copy().values())[-MAX_BARS:]
        lines += [bar.text(columns) for bar in list(self.bars)]
        if self._status is not None:
            ready, total = self._status
            passed = units.clock(time.monotonic() - self._began)
            lines.append(f"Running ({ready}/{total} containers) {passed}")
        return [clipped(line, columns) for line in lines]

    def _erase(self) -> None:
        if self._drawn:
            write_whole(self._err, erasing(len(self._drawn)))
            self._drawn = []


def erasing(lines: int) -> str:
    """From the end of a block of so many lines: up to its start, then clear to the end of the screen."""
    return "\r" + "\x1b[A" * (lines - 1) + "\x1b[J" if lines else ""


def takes_output(stream: TextIO, seconds: float) -> bool:
    """Whether a write would go through now, or within so many seconds."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def clipped(line: str, columns: int) -> str:
    """Cut to the terminal's width (wide characters take two cells); control characters are left out."""
    cells = 0
    kept = []
    for char in line:
        if unicodedata.category(char)[0] == "C":
            continue
        cells += 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if cells > columns:
            break
        kept.append(char)
    return "".join(kept)
