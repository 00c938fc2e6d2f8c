"""Watches an app's runs while somebody is attached: a live line for each, and what to say when they have stopped."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lorry import errors
from lorry.cli import run_words
from lorry.cli.curves import can_draw
from lorry.cli.live_display import MAX_BARS, LiveDisplay
from lorry.cli.run_words import Info
from lorry.sdk.channel import Channel
from lorry.sdk.display import Display

PERIOD = 1.0
"""Seconds between two looks."""
PLAIN_PERIOD = 30.0
"""Seconds between two lines about a run where there is no terminal."""
LAST_LOOK = 5.0
"""Seconds that the end of the command waits for the server to say what became of the runs."""
MOST_RUNS = 1000
MOST_HINTS = 5


class RunLine:
    """Of one run, in the block below the output."""

    def __init__(self) -> None:
        self.info: Info = {}
        self.name = ""
        self._drawn = can_draw(sys.stderr)

    def text(self, columns: int) -> str:
        return run_words.screen_line(self.info, self.name, columns, drawn=self._drawn)


class RunLines:
    """What is shown of an app's runs, and said of them in the end."""

    def __init__(self, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self._display = display
        self._clock = clock
        self._lines: dict[str, RunLine] = {}
        self._said: dict[str, float] = {}
        """When something was last said of a run."""
        self._interruptions: dict[str, int] = {}
        """Of each run, those that were said."""
        self.runs: list[Info] = []
        """As the last look found them, the active ones and those that have ended."""

    @property
    def active(self) -> list[Info]:
        return [info for info in self.runs if run_words.is_active(info)]

    def ended(self, run_id: str) -> Info | None:
        """What is known of a run that is over."""
        return next((info for info in self.runs if info["run_id"] == run_id and not run_words.is_active(info)), None)

    def hints(self) -> list[str]:
        """How to go on with each run that is not done."""
        found = [hint for hint in map(run_words.how_to_go_on, self.runs) if hint]
        more = len(found) - MOST_HINTS
        if more > 0:
            found[MOST_HINTS:] = [f"and {more} more: lorry runs list --all --app {self.runs[0]['app_id']}"]
        return found

    def see(self, runs: list[Any]) -> None:
        """The newest state of the app's runs."""
        self.runs = runs
        active = self.active
        for info in active:
            self._say(info)
        self._draw(active[:MAX_BARS])

    def clear(self) -> None:
        self._draw([])

    def _say(self, info: Info) -> None:
        run_id, now = info["run_id"], self._clock()
        if run_id not in self._said:
            self._said[run_id] = now
            begins = f"goes on, attempt {info['attempts']}" if info["attempts"] > 1 else "begins"
            self._display.note(f"{info['function']}: run {run_id} {begins}")
        elif info["interruptions"] > self._interruptions[run_id]:
            self._said[run_id] = now
            why = run_words.last_line(info["error"] or "nobody knows why")
            self._display.note(f"{info['function']}: run {run_id} was interrupted and goes on: {why}")
        elif not isinstance(self._display, LiveDisplay) and now - self._said[run_id] >= PLAIN_PERIOD:
            self._said[run_id] = now
            self._display.note(run_words.pipe_line(info))
        self._interruptions[run_id] = info["interruptions"]

    def _draw(self, runs: list[Info]) -> None:
        if not isinstance(self._display, LiveDisplay):
            return
        for run_id in self._lines.keys() - {info["run_id"] for info in runs}:
            self._display.bars.discard(self._lines.pop(run_id))
        for info in runs:
            line = self._lines.setdefault(info["run_id"], RunLine())
            alone = sum(other["function"] == info["function"] for other in runs) == 1
            line.info = info
            line.name = info["function"] if alone else f"{info['function']} {run_words.short(info['run_id'])}"
            self._display.bars.add(line)


class RunWatch(RunLines):
    """Asks the server, on a thread and a connection of its own. `close` looks once more."""

    def __init__(self, app_id: str, display: Display) -> None:
        super().__init__(display)
        self._app_id = app_id
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lorry-runs", daemon=True)
        self._thread.start()

    @property
    def lives(self) -> bool:
        """False when the server was lost."""
        return self._thread.is_alive()

    def close(self) -> None:
        self._over.set()
        self._thread.join(LAST_LOOK)
        self.clear()

    def _watch(self) -> None:
        channel = Channel(may_start=False)
        params = {"all": True, "limit": MOST_RUNS, "app_id": self._app_id}
        last = False
        try:
            while not last:
                last = self._over.wait(PERIOD)
                self.see(channel.ask("run_list", params)["runs"])
        except (errors.Error, ConnectionError):  # whoever waits for the app hears of it
            pass
        finally:
            channel.close()
