"""Watches runs under way: those that hang are killed and go on in a new attempt, those past their deadline end."""

from __future__ import annotations

import asyncio
import traceback

from lorry.clock import Clock
from lorry.lifecycle.container import ContainerState
from lorry.server.fleet import Fleet
from lorry.server.run_files import Progress
from lorry.server.runs import Attempt, Runs, UnderWay
from lorry.store.interface import Store

POLL = 1.0
"""Seconds between two looks. Containers write as often."""
AWAY = 5.0
"""Seconds between two looks after which the server itself was stopped, or the machine busy: then nobody is accused."""
LEAST = 60.0
"""Seconds without a step that are no hang yet, however fast the steps were."""
TIMES = 10.0
"""So many times the 99th percentile of the steps' seconds are none either."""


class Liveness:
    """Whether an attempt hangs, by what it says of itself and when, by the server's own clock, that was new. Pure.

    What happens before the first step (loading, compiling: phase "waiting") or outside of steps (saving, restoring)
    takes as long as it takes: the slice bounds it. A process that is stopped says nothing new, like one that waits for
    a lock for ever.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        self._said: Progress | None = None

    def excuse(self, now: float) -> None:
        """Nobody has looked for a while."""
        self._since = now

    def look(self, said: Progress | None, now: float, least: float = LEAST) -> str | None:
        """Why it is to be killed; None: it lives, or nobody can tell."""
        if said is None:
            return None
        if said != self._said:
            self._said, self._since = said, now
        if said.phase != "training":
            self._since = now
            return None
        # While there is no usual step yet, one may compile what the first did not.
        limit, quiet = max(least, TIMES * said.q99) if said.q99 else TIMES * least, now - self._since
        if quiet <= limit:
            return None
        return (
            f"no step for {quiet:.0f} s (limit {limit:.0f} s: {TIMES:g} × 99th percentile of {said.q99:.3g} s, "  # noqa: RUF001
            f"at least {least:g} s), so it was taken to hang at step {said.step:,}; call run.heartbeat() in long "
            "evaluations"
        )


class RunWatch:
    def __init__(self, clock: Clock, store: Store, fleet: Fleet, runs: Runs, *, least: float = LEAST) -> None:
        self._clock = clock
        self._store = store
        self._fleet = fleet
        self._runs = runs
        self._least = least
        self._alive: dict[Attempt, Liveness] = {}
        self._looked = clock.monotonic()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(POLL)
            try:
                await self.look()
            except Exception:  # a fault in one round must not end all later ones
                traceback.print_exc()

    async def look(self) -> None:
        attempts = list(self._runs.attempts.values())
        said = await asyncio.to_thread(lambda: [self._runs.files.progress(attempt.folder) for attempt in attempts])
        now = self._clock.monotonic()
        away, self._looked = now - self._looked > AWAY, now
        self._alive = {one: self._alive.get(one) or Liveness(now) for one in self._runs.attempts.values()}
        for attempt, progress in zip(attempts, said, strict=True):
            if attempt in self._alive:
                self._judge(attempt, progress, now, away)
        for live in list(self._runs.under_way.values()):
            if live.deadline is not None and now >= live.deadline:
                self._end(live)

    def _judge(self, attempt: Attempt, progress: Progress | None, now: float, away: bool) -> None:
        if progress is not None and progress.token == attempt.token:
            attempt.progress = progress
        alive = self._alive[attempt]
        if away:
            alive.excuse(now)
        reason = alive.look(attempt.progress, now, self._least)
        if reason is not None:
            alive.excuse(now)  # again, should it outlive that
            self._fleet.kill(attempt.container_id, reason, guilty=True)

    def _end(self, live: UnderWay) -> None:
        """The deadline is when an attempt is asked to save and end: the run has ended then or, at the latest, the
        function's `grace` later. A deadline that left time for that would end runs which are through in time."""
        run = self._store.run_of(live.call, live.chunk)
        if run is None:  # its first attempt is being written down, or could not be: the disk is full
            return
        attempt = self._runs.attempt_at(run.run_id)
        if attempt is None:
            live.deadline = None
            self._runs.end_overdue(live)
            return
        container = self._fleet.containers.get(attempt.container_id)
        if container is not None and container.state is not ContainerState.LOST_CONTACT:  # else it may come back
            live.deadline, live.overdue = None, True
            self._fleet.stop(attempt.container_id, "the run's deadline is over")
