"""Training that can be killed at any moment and goes on where its last checkpoint was.

A run knows a `CheckpointStore`, an `Ending`, and a folder of its own for what people read (metrics, exports). Where it
runs decides which: `lorry.run()` in `lorry.train.places`. When it saves is with `Checkpoints`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from lorry.clock import Clock, SystemClock
from lorry.errors import Error, ExecutionError, InvalidError
from lorry.train import rng
from lorry.train.batches import Batches
from lorry.train.checkpoints import Checkpoints
from lorry.train.data import batches
from lorry.train.export import export
from lorry.train.fingerprint import warn_of_changes
from lorry.train.manifest import Manifest
from lorry.train.metrics import FLUSH_SECONDS, MetricsLog
from lorry.train.options import Options
from lorry.train.pace import Pace
from lorry.train.progress import Phase, ProgressFile
from lorry.train.restoring import load_newest
from lorry.train.saver import Checkpoint
from lorry.train.server_heads import Past
from lorry.train.stop import AT_ONCE, Ending, ProgramEnd
from lorry.train.store import CheckpointStore
from lorry.train.tracked import HalfStep, Tracked, by_name, check_that_it_can_be_kept, tracked

RNG, SAVED, PROGRESS = "lorry.rng", "lorry.saved", "lorry.progress"
"""Parts of the state beside the tracked objects, whose names have no dots."""


class Run:
    """Track what changes, restore once, then call `step` at the end of each step."""

    def __init__(
        self,
        store: CheckpointStore,
        folder: Path,
        options: Options,
        *,
        clock: Clock | None = None,
        ending: Ending | None = None,
        past: Past | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        """For what people read: metrics.jsonl, exported models."""
        self.restored = False
        """Whether this attempt goes on from a checkpoint."""
        self.restore_seconds = 0.0
        """What finding and loading it took."""
        self.total_steps: int | None = None
        """How many there will be, for whoever watches: as set, or one per batch of the tracked data."""
        self._store, self._options, self._past, self._release = store, options, past, release
        self._clock = clock or SystemClock()
        self._tracked: dict[str, Tracked] = {}
        self._saved: dict[str, Any] = {}
        self._metrics = MetricsLog(folder / "metrics.jsonl")
        self._progress = ProgressFile(folder)
        self._pace = Pace()
        self._checkpoints = Checkpoints(store, folder.name, options, self._clock, self._metrics, self._pace)
        self._saver = self._checkpoints.saver
        self._ending: Ending = ending or ProgramEnd()
        self._asked = self._ending.asked
        self._in_slice = ending is not None
        self._pid = os.getpid()
        self._open = True
        self._over: BaseException | None = None
        """What ended this attempt at a safe point."""
        self._token: int | None = None
        """Of this attempt; None before `restore`."""
        self._step = 0
        self._phase: Phase = "restoring"
        self._stepped_at = 0.0
        self._half = HalfStep()
        self._look_at = 0.0

    @property
    def run_id(self) -> str:
        """`ru-…` as `lorry runs` shows it; outside the platform the name of the folder."""
        return self.folder.name

    @property
    def step_number(self) -> int:
        """Steps that are done, in all attempts together."""
        return self._step

    @property
    def attempt(self) -> int:
        """Which one this is, once restored; the first is 1."""
        return self._checkpoints.attempt

    @property
    def interruptions(self) -> int:
        """Attempts of this run that ended where nobody had planned it, once restored."""
        return self._checkpoints.interruptions

    @property
    def last_checkpoint(self) -> Checkpoint | None:
        """Of this attempt."""
        return self._checkpoints.last

    @property
    def skipped(self) -> int:
        """Checkpoints that were due while another was still being written."""
        return self._checkpoints.skipped

    # What belongs to the state

    def track(self, **objects: Any) -> None:
        """Whatever changes while training: models, optimizers, schedulers, data, anything with `state_dict` and
        `load_state_dict`, random generators, dicts and lists. Before `restore`; each name once, the same in each
        attempt. Python's, NumPy's and torch's shared generators are tracked without a word."""
        if self._token is not None:
            raise ExecutionError("run.track comes before run.restore: what is tracked later would not be restored")
        for name, value in objects.items():
            if name in self._tracked:
                raise InvalidError(f"run.track({name}=…): the name is taken")
            self._tracked[name] = part = tracked(name, value)
            self._half.watch(value, part)
            if part.place is not None:
                self.total_steps = self.total_steps or len(value)

    def data(self, source: Any, **options: Any) -> Batches:
        """Shuffled batches that know their place; track them too. `source` is a path or a dataset; the options are
        those of `lorry.train.batches.Batches`."""
        return batches(source, **options)

    def hugging_face(self, trainer: Any) -> None:
        """Make `trainer.train()` this run's training, for transformers' Trainer and TRL's SFTTrainer: it restores, goes
        on at the right batch, and its steps are the safe points. Call neither `restore` nor `step` beside it."""
        from lorry.train.hugging_face import attach

        attach(self, trainer)

    def save(self, name: str, value: Any) -> None:
        """Keep bytes, a NumPy array or a file (by its path, read at once) under a name, in every checkpoint from the
        next one on: for code without torch. `load` gives it back."""
        self._saved[name] = by_name(name, value)

    def load(self, name: str) -> Any:
        """What `save` kept under the name, bytes or an array; None if there is nothing."""
        return self._saved.get(name)

    # Restore

    def restore(self) -> bool:
        """Load the newest checkpoint that is whole into the tracked objects. False if there is none: the first
        attempt. Call it once, after `track` and before the first `step`.

        InvalidError if the checkpoint has other names than are tracked; CorruptCheckpointError if there are
        checkpoints and none is whole. A warning says what is different about this machine.
        """
        if self._token is not None:
            raise ExecutionError("run.restore was called before: once per attempt")
        began = self._clock.monotonic()
        token = self._store.begin()
        self._beat(began, token=token)
        self._checkpoints.begin(token)
        found = load_newest(self._store, self._tracked, self.folder)
        self.restored = found is not None
        if found is not None:
            self._take(*found)
        else:
            check_that_it_can_be_kept(self._state(orderly=False))
        if self._past is not None:
            self._checkpoints.set_past(self._past)
        self._metrics.cut_back(self._step)
        if self._options.rng == "counter":
            rng.seed(rng.seed_for(self._options.seed, self._step))
        self._token = token
        self._ending.begin(self._answered if self._in_slice else self._ended)
        self._half.begin()
        self._phase = "waiting"
        now = self._stepped_at = self._clock.monotonic()
        self.restore_seconds = now - began
        self._checkpoints.plan(self._step, now, learn=self._in_slice)
        self._beat(now)
        return self.restored

    def _take(self, manifest: Manifest, state: dict[str, Any]) -> None:
        for name, part in self._tracked.items():
            part.load(state[name])
        self._saved = state[SAVED]
        self._step = manifest.step
        self._checkpoints.go_on_from(manifest, state[PROGRESS])
        self._ending.load(state[PROGRESS].get("ending", {}))
        warn_of_changes(manifest.fingerprint, stacklevel=5)
        if RNG in state:
            rng.restore(state[RNG])  # last: nothing may draw after it

    def _state(self, *, orderly: bool) -> dict[str, Any]:
        state: dict[str, Any] = {name: part.state() for name, part in self._tracked.items()}
        if self._options.rng == "state":
            state[RNG] = rng.capture()
        state[SAVED] = self._saved
        state[PROGRESS] = {**self._checkpoints.progress(orderly=orderly), "ending": self._ending.state()}
        return state

    # The safe point

    def step(self, **metrics: Any) -> None:
        """The one safe point, at the end of each step: counts it, notes the metrics, saves if it is time, stops if
        somebody asked, or if the slice is nearly over. Everything tracked must be as it is between two steps."""
        if self._token is None or not self._open:
            self._refuse_step()
        self._step = step = self._step + 1
        now = self._clock.monotonic()
        self._pace.steps.append(now - self._stepped_at)
        self._stepped_at = now
        self._half.end()
        if metrics:
            self._metrics.add(step, self._clock.wall(), metrics)
        if self._options.rng == "counter":
            rng.seed(rng.seed_for(self._options.seed, step))
        due = now >= self._look_at or step >= self._checkpoints.due_step
        if due or self._asked.wanted is not None or self._saver.has_news:
            self._safe_point(now)

    def _refuse_step(self) -> NoReturn:
        if self._over is not None:  # somebody caught it
            raise self._over
        raise ExecutionError("run.step comes after run.restore (also at the first attempt) and before run.finish")

    def _safe_point(self, now: float) -> None:
        checkpoints, ending = self._checkpoints, self._ending
        if self._pace.first is None:
            self._pace.first, self._pace.first_at = self._pace.steps.pop(), now
        checkpoints.hear(self._step)
        ending.look_again(self._pace, checkpoints.in_flight)
        if self._asked.wanted is not None or now >= ending.latest:
            self._end(ending.due(now, self._pace, checkpoints.in_flight).reason)
        if now >= checkpoints.due_at or self._step >= checkpoints.due_step:
            ending.look_again(self._pace, 0.0)  # with a save more
            if now < ending.latest:
                checkpoints.start(self._step, lambda: self._state(orderly=False))
            ending.look_again(self._pace, checkpoints.in_flight)
            checkpoints.plan(self._step, self._clock.monotonic(), learn=self._in_slice)
        self._metrics.flush()
        self._phase = "training"
        self._beat(now)
        self._stepped_at = self._clock.monotonic()  # what a checkpoint took is not part of the next step
        self._look_at = min(checkpoints.due_at, ending.latest, self._stepped_at + FLUSH_SECONDS)

    def _end(self, why: str) -> NoReturn:
        """Save, and end this attempt."""
        self._phase = "saving"
        self._beat(self._clock.monotonic(), why=why)
        self._checkpoints.save_and_wait(self._step, lambda: self._state(orderly=True))
        self._over = self._ending.end(self._pace)
        self._close()
        raise self._over

    # Being watched

    def heartbeat(self) -> None:
        """Say that this attempt is alive, in a long evaluation between two steps. Without a sign of life for a minute,
        or for ten of its longest steps, it counts as hung, and Lorry starts the next one."""
        if self._token is not None:
            self._beat(self._clock.monotonic())

    def _beat(self, now: float, **more: Any) -> None:
        if not self._progress.due(self._phase, now):
            return
        latest = self._ending.latest
        values = {
            "token": self._token,
            "step": self._step,
            "total": self.total_steps,
            "seconds_per_step": self._pace.mean_step,
            "q99": self._pace.longest_step or self._pace.first or 0.0,
            "yield_at": latest if latest < float("inf") else None,
            "restore_seconds": self.restore_seconds,
        }
        self._progress.write(self._phase, now, values | more)

    # The end

    def export(self, model: Any, name: str = "model") -> Path:
        """Write a model (or tensors by name) as <folder>/<name>.safetensors, whole or not at all."""
        return export(model, self.folder / f"{name}.safetensors")

    def finish(self) -> None:
        """Save the last step, unless it is saved, and end the run's bookkeeping. It happens by itself when the
        program or function ends without an exception. If somebody has asked this attempt to end, it ends the program,
        as `step` does."""
        if not self._is_going_on():
            return
        try:
            self._save_the_rest()
            if self._asked.wanted is not None:
                self._over = self._ending.end(self._pace)
        finally:
            self._close()
        if self._over is not None:
            raise self._over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended(kind is None)

    def _ended(self, well: bool) -> None:
        if well:
            self.finish()
        else:
            self._answered(False)

    def _answered(self, well: bool) -> None:
        """A result or an exception is there, and counts whatever somebody wants by now, or what becomes of the save."""
        if not self._is_going_on():
            return
        try:
            (self._save_the_rest if well else self._settle)()
        except Error as error:
            warnings.warn(f"The last checkpoint could not be saved: {error}", stacklevel=3)
        finally:
            self._close()

    def _is_going_on(self) -> bool:
        return self._open and os.getpid() == self._pid

    def _settle(self) -> None:
        """What is being written is completed: all that can be done for a state that may be half of a step."""
        if self._asked.wanted != AT_ONCE:
            self._saver.wait()
            self._checkpoints.hear(self._step)

    def _save_the_rest(self) -> None:
        checkpoints = self._checkpoints
        self._settle()
        if self._asked.wanted == AT_ONCE or (self._step <= checkpoints.saved_step and not self._saver.failures):
            return
        if self._half.done:
            self._half.warn(checkpoints.saved_step)
        else:
            checkpoints.save_and_wait(self._step, lambda: self._state(orderly=True))

    def _close(self) -> None:
        self._open = False
        self._metrics.flush()
        self._ending.over()
        self._phase = "waiting"
        if self._token is not None:
            self._beat(self._clock.monotonic())
        self._release()
