"""What a program shows while an app runs. Silent unless inside `enable_output()`.

Output of containers goes to this process's stdout and stderr, whole lines; the platform's own words go to stderr.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from lorry.timeouts import CONNECT_POLL, RECONNECT

if TYPE_CHECKING:
    from lorry.sdk.channel import Channel

LAST_LINE = 10.0
"""Seconds without a line after which the end of an app's log is not waited for any longer. Only a server that
died in the middle of `app_stop` leaves it open."""


class Progress(Protocol):
    def update(self, finished: int, total: int | None) -> None: ...

    def close(self) -> None: ...


class Display(Protocol):
    """Where events of a running app go. `line` may wait for a slow reader; everything else returns at once."""

    def line(self, row: dict[str, Any]) -> None:
        """One line of a container: {"c": container, "k": call, "s": 1 or 2, "x": text}."""
        ...

    def note(self, text: str) -> None:
        """A step of the platform: an object made, an app started."""
        ...

    def build(self, line: str) -> None:
        """A line of an image build's log."""
        ...

    def containers(self, ready: int, total: int, peak_mib: int) -> None: ...

    def progress(self, name: str) -> Progress: ...


class _NoProgress:
    def update(self, finished: int, total: int | None) -> None:
        pass

    def close(self) -> None:
        pass


def shown_text(text: str) -> str | None:
    """What a line leaves on paper: the last state of a bar that was drawn with `\\r`; None while it is drawn."""
    if text.endswith("\r"):
        return None
    return text.rpartition("\r")[2]


def write_whole(stream: TextIO, text: str) -> None:
    """One write, so that lines of several writers do not mix. Around the stream's own buffer where that is
    possible: a program's half-written line then stays half-written instead of ending up inside this one."""
    try:
        direct = isinstance(stream, io.TextIOWrapper) and stream.line_buffering
        descriptor = stream.fileno() if direct else -1
    except (OSError, ValueError):
        descriptor = -1
    if descriptor < 0:
        stream.write(text)
        stream.flush()
        return
    data = memoryview(text.encode(stream.encoding or "utf-8", "backslashreplace"))
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # somebody made the terminal non-blocking
            select.select([], [descriptor], [])


@contextlib.contextmanager
def line_buffered() -> Iterator[None]:
    """Prints of this program leave line by line, so that they stand in their place among containers' lines."""
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.line_buffering:
            stream.reconfigure(line_buffering=True)
            changed.append(stream)
    try:
        yield
    finally:
        for stream in changed:
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(line_buffering=False)


class PlainDisplay:
    """Plain lines, for pipes and for `enable_output()` in programs."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self.peak_mib = 0

    def line(self, row: dict[str, Any]) -> None:
        text = shown_text(row["x"])
        if text is None:
            return
        try:
            with self._lock:
                write_whole(sys.stderr if row["s"] == 2 else sys.stdout, text + "\n")
        except BrokenPipeError:
            self.reader_gone()

    def reader_gone(self) -> None:
        """Nobody reads what containers print any more (`| head`)."""

    def note(self, text: str) -> None:
        if not self._quiet:
            with self._lock, contextlib.suppress(OSError):
                write_whole(sys.stderr, text + "\n")

    def build(self, line: str) -> None:
        self.note(f"  {line}")

    def containers(self, ready: int, total: int, peak_mib: int) -> None:
        self.peak_mib = max(self.peak_mib, peak_mib)

    def progress(self, name: str) -> Progress:
        return _NoProgress()


_current: list[Display] = []


def current() -> Display | None:
    return _current[-1] if _current else None


def progress(name: str) -> Progress:
    display = current()
    return display.progress(name) if display else _NoProgress()


def note(text: str) -> None:
    display = current()
    if display is not None:
        display.note(text)


@contextlib.contextmanager
def showing(display: Display) -> Iterator[Display]:
    _current.append(display)
    try:
        yield display
    finally:
        _current.remove(display)


@contextlib.contextmanager
def enable_output(show_progress: bool = True) -> Iterator[None]:
    """Show the output of containers, and what the platform does, while apps run inside this block."""
    with line_buffered(), showing(PlainDisplay(quiet=not show_progress)):
        yield


CATCH_UP = 0.02
"""Seconds that a result waits for the output that was sent before it. A screen that is slower is not waited for."""
_followers: list[LogFollower] = []


def show_first() -> None:
    """A result is here: what its function printed was sent before it, and is shown before it."""
    for follower in _followers:
        follower.catch_up()


class LogFollower:
    """The one thread behind `enable_output`: passes what an app prints to the display.

    When the server is lost, or cuts off a reader that is too slow for it, the log is asked for again from its
    beginning, and the lines that were shown are passed over."""

    def __init__(self, app_id: str, display: Display) -> None:
        self._app_id = app_id
        self._display = display
        self._shown = 0
        self._position = 0
        self._writing = False
        self._slow = False
        self._channel: Channel | None = None
        self._thread = threading.Thread(target=self._follow, name="lorry-output", daemon=True)
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait(timeout=5.0)
        _followers.append(self)

    def catch_up(self) -> None:
        """Wait until nothing that has come is unseen; not again as long as that takes longer than CATCH_UP."""
        channel = self._channel
        if channel is None or not channel.behind():
            self._slow = False
            return
        deadline = time.monotonic() + CATCH_UP
        while not self._slow and channel.behind():
            time.sleep(0.0002)
            self._slow = time.monotonic() > deadline

    def _follow(self) -> None:
        from lorry import errors
        from lorry.sdk.channel import Channel

        channel = self._channel = Channel(may_start=False)
        deadline = None
        while not self._ended.is_set():
            self._position = 0
            before = self._shown
            try:
                params = {"app_id": self._app_id, "follow": True}
                channel.follow("app_logs", params, self._event, self._ended, self._ready)
            except (ConnectionError, errors.ConnectionError):
                channel.close()
                if deadline is None or self._shown > before:
                    deadline = time.monotonic() + RECONNECT
                if time.monotonic() > deadline:
                    break
                self._ended.wait(CONNECT_POLL)
            except errors.Error:
                break
        self._channel = None
        self._forget()
        self._ready.set()
        channel.close()

    def _forget(self) -> None:
        with contextlib.suppress(ValueError):
            _followers.remove(self)

    def _event(self, event: dict[str, Any]) -> None:
        for row in event.get("lines", ()):
            self._position += 1
            if self._position > self._shown:
                self._shown = self._position
                self._writing = True
                if not row["c"].startswith("sb-"):  # what a sandbox prints is for who reads it, and may be anything
                    self._display.line(row)
                self._writing = False
        if "containers" in event:
            ready, total = event["containers"]
            self._display.containers(ready, total, event.get("peak", 0))
        if "end" in event:
            self._ended.set()

    def close(self) -> None:
        """Waits for the last line: the server ends the log when the app's containers are gone. A reader that
        does not read is waited for, as it is by any program that prints."""
        self._forget()
        before = -1
        while self._thread.is_alive() and (self._shown != before or self._writing):
            before = self._shown
            self._thread.join(timeout=LAST_LINE)
