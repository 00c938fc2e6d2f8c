"""What a program shows while an app runs. Silent unless inside `enable_output()`.

Output of containers goes to this process's stdout and stderr, whole lines; the platform's own words go to stderr.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol


class Progress(Protocol):
    def update(self, finished: int, total: int | None) -> None: ...

    def close(self) -> None: ...


class Display(Protocol):
    """Where events of a running app go."""

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


class PlainDisplay:
    """Plain lines, for pipes and for `enable_output()` in programs."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self.peak_mib = 0

    def line(self, row: dict[str, Any]) -> None:
        stream = sys.stderr if row["s"] == 2 else sys.stdout
        text = row["x"]
        with self._lock, contextlib.suppress(BrokenPipeError):
            stream.write(text.rpartition("\r")[2] + "\n" if not text.endswith("\r") else "")
            stream.flush()

    def note(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

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
    with showing(PlainDisplay(quiet=not show_progress)):
        yield


class LogFollower:
    """The one thread behind `enable_output`: passes what an app prints to the display."""

    def __init__(self, app_id: str, display: Display) -> None:
        self._app_id = app_id
        self._display = display
        self._thread = threading.Thread(target=self._follow, name="lorry-output", daemon=True)
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait(timeout=5.0)

    def _follow(self) -> None:
        from lorry import errors
        from lorry.sdk.channel import Channel

        channel = Channel(may_start=False)
        first = True
        while not self._ended.is_set():
            try:
                params = {"app_id": self._app_id, "follow": True, "only_new": not first}
                channel.follow("app_logs", params, self._event, self._ended, self._ready)
            except (ConnectionError, errors.ConnectionError):
                channel.close()
                first = False
            except errors.Error:
                break
        self._ready.set()
        channel.close()

    def _event(self, event: dict[str, Any]) -> None:
        for row in event.get("lines", ()):
            self._display.line(row)
        if "containers" in event:
            ready, total = event["containers"]
            self._display.containers(ready, total, event.get("peak", 0))
        if "end" in event:
            self._ended.set()

    def close(self) -> None:
        """Waits for the last line: the server ends the log when the app's containers are gone."""
        self._thread.join(timeout=10.0)
