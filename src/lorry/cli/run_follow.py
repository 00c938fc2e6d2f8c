"""Staying with a run: a page that redraws itself, its log, and both after `lorry runs resume`."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, NoReturn

from lorry import errors
from lorry.cli import apps, execution, run_page, run_words, units
from lorry.cli.curves import can_draw
from lorry.cli.live_display import clipped, erasing
from lorry.cli.run_watch import MOST_RUNS, PERIOD, PLAIN_PERIOD, RunWatch
from lorry.cli.run_words import Info
from lorry.sdk.channel import Channel
from lorry.sdk.display import LogFollower, write_whole

POINTS = 400
"""Rows of metrics that are asked for: more than a wide terminal has columns of dots."""
SHARE = 10
"""The server is asked for the page in at most a tenth of the time."""
GLANCE = 0.1
"""Seconds between two looks at what another thread knows."""


def leave(run_id: str) -> NoReturn:
    """At Ctrl-C."""
    print(f"The run goes on; stop it with: lorry runs cancel {run_id}", file=sys.stderr, flush=True)
    raise KeyboardInterrupt


# The page


def put(lines: Iterable[str]) -> None:
    """What users wrote, their errors for instance, may have characters that the terminal has not."""
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding), flush=True)


def whole_page(run: Info) -> list[str]:
    columns = shutil.get_terminal_size().columns
    return run_page.page(run, columns=columns, drawn=can_draw(sys.stdout), now=time.time())


def page(run_id: str) -> None:
    """Until the run ends: redrawn on a terminal, in a pipe the page once and then a line when there is news."""
    show = _Redrawn() if sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb") else _Appended()
    channel = Channel()
    try:
        while True:
            asked = time.monotonic()
            run = channel.ask("run_show", {"run": run_id, "points": POINTS})
            if not run_words.is_active(run):
                show.end(run)
                return
            show.see(run)
            time.sleep(max(PERIOD, (time.monotonic() - asked) * SHARE))  # of a long run there is much to read
    except KeyboardInterrupt:
        leave(run_id)
    finally:
        channel.close()


class _Redrawn:
    """On a terminal."""

    def __init__(self) -> None:
        self._lines = 0

    def see(self, run: Info) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = run_page.fitting(run, columns=columns - 1, rows=rows - 1, drawn=can_draw(sys.stdout), now=time.time())
        self._put([clipped(line, columns - 1) for line in lines])

    def end(self, run: Info) -> None:
        self._put(whole_page(run))

    def _put(self, lines: list[str]) -> None:
        """The cursor stays below: what Ctrl-C says comes there."""
        write_whole(sys.stdout, erasing(self._lines + 1) * (self._lines > 0) + "\n".join([*lines, ""]))
        self._lines = len(lines)


class _Appended:
    """In a pipe."""

    def __init__(self) -> None:
        self._news: Any = None
        self._at = 0.0

    def see(self, run: Info) -> None:
        news = (run["state"], run["attempts"])
        if self._news is None:
            put([*whole_page(run), ""])
        elif news != self._news or time.monotonic() - self._at >= PLAIN_PERIOD:
            put([_line(run)])
        else:
            return
        self._news, self._at = news, time.monotonic()

    def end(self, run: Info) -> None:
        if self._news is None:
            put(whole_page(run))
        else:
            put(filter(None, [_line(run), run_words.how_to_go_on(run)]))


def _line(run: Info) -> str:
    return run_words.pipe_line({**run, "metrics": run_page.last_row(run)})


# The log


def logs(run: Info, *, follow: bool, tail: int) -> None:
    """Of the call that the run is at: a run that was resumed has another one."""
    params = {"app_id": run["app_id"], "call": run["call"], "tail": tail, "follow": follow}
    if not follow or not run_words.is_active(run):
        apps.show_logs({**params, "follow": False}, timestamps=False)
        return
    channel, over, ready = Channel(), threading.Event(), threading.Event()
    threading.Thread(target=_end_with, args=(run, channel, over, ready), name="lorry-run", daemon=True).start()
    try:
        channel.follow("app_logs", params, apps.log_printer(params, timestamps=False), over, ready)
    except ConnectionError:
        if not over.is_set():
            raise errors.ConnectionError("the server ended") from None
    except KeyboardInterrupt:
        leave(run["run_id"])
    finally:
        channel.close()


def _end_with(run: Info, log: Channel, over: threading.Event, ready: threading.Event) -> None:
    """An app may go on when the run has ended, and its log with it: cut that off when all of the run's is here."""
    channel = Channel()
    try:
        ready.wait()
        while run_words.is_active(_newest(channel, run)):
            time.sleep(PERIOD)
        while log.behind():
            time.sleep(GLANCE)
        over.set()
    finally:
        channel.close()
        if log.sock is not None:
            log.sock.shutdown(socket.SHUT_RDWR)


def _newest(channel: Channel, run: Info) -> Info:
    params = {"app_id": run["app_id"], "all": True, "limit": MOST_RUNS}
    rows = channel.ask("run_list", params)["runs"]
    return next((row for row in rows if row["run_id"] == run["run_id"]), {**run, "state": "gone", "phase": None})


# Both


def attach(run_id: str, app_id: str) -> int:
    """Output and progress until the run ends; the exit code."""
    try:
        with execution.displaying(quiet=False) as display:
            watch = RunWatch(app_id, display)
            follower = LogFollower(app_id, display)
            while watch.ended(run_id) is None and watch.lives:
                time.sleep(GLANCE)
            follower.close()
            watch.close()
    except execution.ReaderGone:
        execution.hush()
        return execution.EXIT_READER_GONE
    except KeyboardInterrupt:
        leave(run_id)
    return _ended(watch.ended(run_id))


def _ended(run: Info | None) -> int:
    if run is None:
        raise errors.ConnectionError("the server was lost")
    if run["state"] == "done":
        took = units.duration(run["finished_at"] - run["created_at"])
        print(f"{run['run_id']} is done: step {run_words.steps(run)}, {took} after it began", file=sys.stderr)
        return 0
    print("\n".join(filter(None, [run["error"], run_words.how_to_go_on(run)])), file=sys.stderr)
    return execution.EXIT_ERROR
