"""When a run saves, what it keeps, and what became of its saves."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from lorry.clock import Clock
from lorry.errors import Error
from lorry.train.capture import Staging
from lorry.train.fingerprint import fingerprint
from lorry.train.manifest import Entry, Manifest
from lorry.train.metrics import MetricsLog
from lorry.train.options import Options
from lorry.train.pace import Pace
from lorry.train.policy import Kept, interval, mean_seconds_to_interruption, retained
from lorry.train.saver import Checkpoint, Describe, Saver
from lorry.train.server_heads import Past
from lorry.train.store import CheckpointStore

SWEEP_SECONDS = 600.0
"""Between two looks at files that other attempts left behind."""
MOST_MISSED = 100
"""Attempts that a gap between two tokens can stand for; a larger one was made by a store that lost count."""

State = Callable[[], dict[str, Any]]
"""Everything that belongs to a checkpoint, asked for at a safe point."""


class Checkpoints:
    def __init__(
        self, store: CheckpointStore, run_id: str, options: Options, clock: Clock, metrics: MetricsLog, pace: Pace
    ) -> None:
        self.last: Checkpoint | None = None
        """Of this attempt."""
        self.skipped = 0
        """Checkpoints that were due while another was still being written."""
        self.saved_step = 0
        self.attempt = self.interruptions = 0
        self.due_step: float = sys.maxsize
        self.due_at = float("inf")
        self.saver = Saver(store, self._committed)
        self._store, self._run_id, self._options = store, run_id, options
        self._clock, self._metrics, self._pace = clock, metrics, pace
        self._staging = Staging()
        self._token = 0
        self._parent: str | None = None
        self._kept: list[Kept] = []
        self._seconds_before = 0.0
        self._fingerprint: dict[str, str] = {}
        self._began_at = self._swept_at = self._started_at = clock.monotonic()

    # An attempt begins

    def begin(self, token: int) -> None:
        self._token = token
        self.attempt = token if token <= MOST_MISSED else 1
        self._began_at = self._clock.monotonic()

    def go_on_from(self, manifest: Manifest, progress: dict[str, Any]) -> None:
        """`progress`: what `progress()` gave for it."""
        self.saved_step, self._parent = manifest.step, manifest.id
        self._kept = [*(Kept(*row) for row in progress["kept"]), Kept(manifest.id, manifest.step, manifest.created_at)]
        missed = self._token - manifest.token  # each attempt since then was interrupted before it saved
        missed = missed if missed <= MOST_MISSED else 1
        self.attempt = progress.get("attempt", manifest.token) + missed
        self.interruptions = progress["interruptions"] + missed - progress["orderly"]
        self._seconds_before = progress["seconds"]
        self._pace.load(progress.get("pace", {}), manifest.stall_seconds)

    def set_past(self, past: Past) -> None:
        """By somebody who knows more than the tokens tell."""
        self.attempt, self.interruptions, self._seconds_before = past.attempt, past.interruptions, past.seconds

    def progress(self, *, orderly: bool) -> dict[str, Any]:
        """What the next attempt has to know of this one."""
        return {
            "attempt": self.attempt,
            "interruptions": self.interruptions,
            "seconds": self._trained(self._clock.monotonic()),
            "orderly": orderly,
            "kept": [list(astuple(kept)) for kept in self._kept],
            "pace": self._pace.state(),
        }

    def _trained(self, now: float) -> float:
        return self._seconds_before + now - self._began_at

    # When

    def plan(self, step: int, now: float, *, learn: bool) -> None:
        """The next one. `learn`: what a checkpoint costs has to be known soon, however seldom they are wanted."""
        every = self._options.every
        self.due_step, self.due_at = sys.maxsize, float("inf")
        by_formula = every.steps is None and every.seconds is None
        if (by_formula and self._pace.stall is None) or (learn and not self._pace.knows_saves):
            self.due_step = step + 1
        elif every.steps is not None:
            self.due_step = (step // every.steps + 1) * every.steps
        elif every.seconds is not None:
            self.due_at = now + every.seconds
        else:
            assert self._pace.stall is not None
            mean = mean_seconds_to_interruption(self.interruptions, self._trained(now))
            persist, one = self._pace.persist or 0.0, self._pace.mean_step
            self.due_at = now + interval(self._pace.stall, mean, persist=persist, step=one)

    @property
    def in_flight(self) -> float | None:
        """Seconds for which a save has been under way."""
        return self._clock.monotonic() - self._started_at if self.saver.busy else None

    # Saving

    def start(self, step: int, state: State) -> None:
        """In the background, unless one is being written."""
        if self.saver.busy:
            self.skipped += 1
            return
        captured = self._capture(step, state)
        self._started_at = self._clock.monotonic()
        self.saver.start(*captured)

    def save_and_wait(self, step: int, state: State) -> None:
        """The last one of this attempt, durable when this returns."""
        self.saver.wait()
        self.hear(step)
        self._note(step, self.saver.write(*self._capture(step, state)))

    def _capture(self, step: int, state: State) -> tuple[Any, Describe, float]:
        """The stall: everything until this returns is time that training stands still."""
        began = self._clock.monotonic()
        self._metrics.flush()
        snapshot = self._staging.take(state())
        self._fingerprint = self._fingerprint or fingerprint()
        stall = self._pace.stall = self._clock.monotonic() - began
        token, parent, created_at = self._token, self._parent, self._clock.wall()

        def describe(entries: tuple[Entry, ...]) -> Manifest:
            return Manifest(
                run_id=self._run_id,
                step=step,
                token=token,
                parent=parent,
                entries=entries,
                structure=snapshot.tree,
                fingerprint=self._fingerprint,
                created_at=created_at,
                stall_seconds=stall,
            )

        self.saved_step = step
        return snapshot, describe, stall

    def _committed(self, checkpoint: Checkpoint) -> None:
        """On the thread that saved."""
        self._parent = checkpoint.manifest
        self._kept = retained(
            [*self._kept, Kept(checkpoint.manifest, checkpoint.step, checkpoint.created_at)],
            keep_last=self._options.keep_last,
            keep_every=self._options.keep_every,
        )
        now = self._clock.monotonic()
        sweep = now - self._swept_at > SWEEP_SECONDS
        if sweep:
            self._swept_at = now
        try:
            self._store.collect({kept.manifest for kept in self._kept}, sweep=sweep)
        except Error as error:  # the checkpoint is there all the same
            warnings.warn(f"Checkpoints that are not needed any more could not be removed: {error}", stacklevel=2)

    # What became of it

    def hear(self, step: int) -> bool:
        """Whether there was something to hear of the last save. Raises its error if this attempt must not go on."""
        outcome = self.saver.news()
        if isinstance(outcome, Checkpoint):
            self._note(step, outcome)
        elif outcome is not None and self.saver.failures == 1:
            warnings.warn(f"A checkpoint could not be saved; training goes on and tries again: {outcome}", stacklevel=5)
        return outcome is not None

    def _note(self, step: int, checkpoint: Checkpoint) -> None:
        self.last = checkpoint
        self._pace.saved(checkpoint.stall, checkpoint.persist)
        row = {
            "step": checkpoint.step,
            "stall": round(checkpoint.stall, 6),
            "persist": round(checkpoint.persist, 6),
            "bytes": checkpoint.total_bytes,
            "new_bytes": checkpoint.new_bytes,
            "manifest": checkpoint.manifest,
        }
        self._metrics.add(step, self._clock.wall(), {"checkpoint": row})
