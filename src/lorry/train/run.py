"""`lorry.run()`: training that can be killed at any moment and goes on where its last checkpoint was.

A run knows a `CheckpointStore`, an `Ending`, and a folder of its own for what people read (metrics, exports). Where it
runs decides which: `lorry.train.places`. When it saves is with `Checkpoints`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

from lorry.clock import Clock, SystemClock
from lorry.errors import Error, ExecutionError, InvalidError
from lorry.train import places, rng
from lorry.train.batches import Batches
from lorry.train.checkpoints import Checkpoints
from lorry.train.data import batches
from lorry.train.export import export
from lorry.train.fingerprint import changes, fingerprint
from lorry.train.manifest import Manifest
from lorry.train.metrics import FLUSH_SECONDS, MetricsLog
from lorry.train.options import Options, options
from lorry.train.pace import Pace
from lorry.train.progress import Phase, ProgressFile
from lorry.train.restoring import load_newest
from lorry.train.saver import Checkpoint
from lorry.train.server_heads import Past
from lorry.train.slices import SliceEnd
from lorry.train.stop import Ending, ProgramEnd
from lorry.train.store import CheckpointStore
from lorry.train.structure import Flattener
from lorry.train.tracked import Tracked, tracked

RNG, SAVED, PROGRESS = "lorry.rng", "lorry.saved", "lorry.progress"
"""Parts of the state beside the tracked objects, whose names have no dots."""


def run(
    folder: str | os.PathLike[str] | None = None,
    *,
    every: str | int | None = None,
    keep_last: int | None = None,
    keep_every: str | None = None,
    rng: Literal["state", "counter"] = "state",
    seed: int = 0,
) -> Run:
    """The training run of this script; started again, it is the same run. In a resumable function: that of its input.

    `folder`: default LORRY_RUN_DIR, or ./lorry-runs/<name of the script>. `every`: how often to save; "auto" works
    it out from what a checkpoint costs and how often training was interrupted; otherwise steps (200) or a time ("5m").
    `keep_last` checkpoints (2) are kept, and of each `keep_every` ("1h") the first. What is not given here is as
    `lorry.Resumable` says. `rng="counter"` starts the shared random generators afresh before each step, from `seed` and
    the step, instead of saving their state.

    AlreadyExistsError if another process trains in the folder. InvalidError in a container whose function is not
    resumable: what it wrote would go with it.
    """
    slice = places.slice_of_this_function(folder)
    chosen = options(
        every=every,
        keep_last=keep_last,
        keep_every=keep_every,
        rng=rng,
        seed=seed,
        policy=slice.policy if slice else None,
    )
    if slice is not None:
        platform, heads = places.of_the_platform()
        return Run(platform, heads.folder, chosen, ending=SliceEnd(slice), past=heads.past)
    store, place, release = places.on_this_machine(folder)
    try:
        return Run(store, place, chosen, release=release)
    except BaseException:
        release()
        raise


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
        self._total: int | None = None
        self._phase: Phase = "restoring"
        self._stepped_at = 0.0
        self._in_step = False
        """A tracked optimizer has stepped since the last safe point: the state is between two steps."""
        self._places: list[Callable[[], Any]] = []
        """Of the tracked data."""
        self._place: list[Any] = []
        """At the last safe point."""
        self._due_step: float = sys.maxsize
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
    def total_steps(self) -> int | None:
        """How many there will be, for whoever watches: as set, or one per batch of the tracked data."""
        return self._total

    @total_steps.setter
    def total_steps(self, count: int | None) -> None:
        self._total = count

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
            if hasattr(value, "register_step_post_hook"):
                value.register_step_post_hook(self._optimizer_stepped)
            if part.place is not None:
                self._places.append(part.place)
                self._total = self._total or len(value)

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
        if isinstance(value, (str, os.PathLike)):
            value = Path(value).read_bytes()
        if not isinstance(value, (bytes, bytearray)) and type(value).__name__ != "ndarray":
            raise InvalidError(f"run.save({name!r}) takes bytes, an array or a path, not {type(value).__qualname__}")
        self._saved[name] = bytes(value) if isinstance(value, bytearray) else value

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
        self._beat(began, token)
        self._checkpoints.begin(token)
        found = load_newest(self._store, self._tracked, self.folder)
        self.restored = found is not None
        if found is not None:
            self._take(*found)
        else:
            flat = Flattener()
            for name, part in self._state(orderly=False).items():  # what cannot be saved shows now, not in an hour
                flat.tree(part, name)
        if self._past is not None:
            self._checkpoints.set_past(self._past)
        self._metrics.cut_back(self._step)
        if self._options.rng == "counter":
            rng.seed(rng.seed_for(self._options.seed, self._step))
        self._token = token
        self._ending.begin(self._answered if self._in_slice else self._ended)
        self._place = [place() for place in self._places]
        self._phase = "waiting"
        now = self._stepped_at = self._clock.monotonic()
        self.restore_seconds = now - began
        self._plan(now)
        self._beat(now, token)
        return self.restored

    def _take(self, manifest: Manifest, state: dict[str, Any]) -> None:
        for name, part in self._tracked.items():
            part.load(state[name])
        self._saved = state[SAVED]
        self._step = manifest.step
        self._checkpoints.go_on_from(manifest, state[PROGRESS])
        self._ending.load(state[PROGRESS].get("ending", {}))
        different = changes(manifest.fingerprint, fingerprint())
        if different:
            warnings.warn(
                "The checkpoint was made in another environment, so the result may differ in its last bits: "
                + "; ".join(different),
                stacklevel=4,
            )
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
        self._in_step = False
        now = self._clock.monotonic()
        self._pace.steps.append(now - self._stepped_at)
        self._stepped_at = now
        if self._places:
            self._place = [place() for place in self._places]
        if metrics:
            self._metrics.add(step, self._clock.wall(), metrics)
        if self._options.rng == "counter":
            rng.seed(rng.seed_for(self._options.seed, step))
        if now >= self._look_at or step >= self._due_step or self._asked.wanted is not None or self._saver.has_news:
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
            self._plan(self._clock.monotonic())
        self._metrics.flush()
        self._phase = "training"
        if self._progress.due(self._phase, now):
            self._beat(now, self._token)
        self._stepped_at = self._clock.monotonic()  # what a checkpoint took is not part of the next step
        self._look_at = min(checkpoints.due_at, ending.latest, self._stepped_at + FLUSH_SECONDS)

    def _plan(self, now: float) -> None:
        self._checkpoints.plan(self._step, now, learn=self._in_slice)
        self._due_step = self._checkpoints.due_step

    def _end(self, why: str) -> NoReturn:
        """Save, and end this attempt."""
        self._phase = "saving"
        self._beat(self._clock.monotonic(), self._token, why=why)
        self._checkpoints.save_and_wait(self._step, lambda: self._state(orderly=True))
        self._over = self._ending.end(self._pace)
        self._close()
        raise self._over

    # Being watched

    def heartbeat(self) -> None:
        """Say that this attempt is alive, in a long evaluation between two steps. Without a sign of life for a minute,
        or for ten of its longest steps, it counts as hung, and Lorry starts the next one."""
        now = self._clock.monotonic()
        if self._token is not None and self._progress.due(self._phase, now):
            self._beat(now, self._token)

    def _beat(self, now: float, token: int | None, **more: Any) -> None:
        latest = self._ending.latest
        self._progress.write(
            self._phase,
            now,
            {
                "token": token,
                "step": self._step,
                "total": self._total,
                "seconds_per_step": self._pace.mean_step,
                "q99": self._pace.longest_step or self._pace.first or 0.0,
                "yield_at": latest if latest < float("inf") else None,
                "restore_seconds": self.restore_seconds,
                **more,
            },
        )

    # The end

    def export(self, model: Any, name: str = "model") -> Path:
        """Write a model (or tensors by name) as <folder>/<name>.safetensors, whole or not at all."""
        return export(model, self.folder / f"{name}.safetensors")

    def finish(self) -> None:
        """Save the last step, unless it is saved, and end the run's bookkeeping. It happens by itself when the
        program or function ends without an exception. If somebody has asked this attempt to end, it ends the program,
        as `step` does."""
        if not self._open or os.getpid() != self._pid:
            return
        try:
            self._finish()
            if self._asked.wanted is not None:
                self._over = self._ending.end(self._pace)
        finally:
            self._close()
        if self._over is not None:
            raise self._over

    def _finish(self) -> None:
        checkpoints = self._checkpoints
        self._saver.wait()
        checkpoints.hear(self._step)
        if self._step <= checkpoints.saved_step and not self._saver.failures:
            return
        if self._in_step or self._place != [place() for place in self._places]:
            warnings.warn(
                "The program ends between two steps (since the last run.step() an optimizer has stepped, or a batch "
                f"was taken), so the newest checkpoint is that of step {checkpoints.saved_step:,}; what follows it "
                "will be done again",
                stacklevel=4,
            )
        else:
            checkpoints.save_and_wait(self._step, lambda: self._state(orderly=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended(kind is None)

    def _ended(self, well: bool) -> None:
        if well:
            self.finish()
        elif self._open and os.getpid() == self._pid:
            self._abandon()

    def _answered(self, well: bool) -> None:
        """The function has come to its end. Its result is there, and counts whatever somebody wants by now."""
        if not well or not self._open or os.getpid() != self._pid:
            self._ended(well)
            return
        try:
            self._finish()
        except Error as error:
            warnings.warn(f"The last checkpoint could not be saved: {error}", stacklevel=3)
        finally:
            self._close()

    def _abandon(self) -> None:
        """After an exception: the state may be half of a step, so only what is being written is completed."""
        self._saver.wait()
        try:
            self._checkpoints.hear(self._step)
        except Error as error:  # the exception that ends the program matters more
            warnings.warn(f"The last checkpoint could not be saved: {error}", stacklevel=3)
        finally:
            self._close()

    def _close(self) -> None:
        self._open = False
        self._metrics.flush()
        self._ending.over()
        self._phase = "waiting"
        if self._token is not None:
            self._beat(self._clock.monotonic(), self._token)
        self._release()

    def _optimizer_stepped(self, *_: Any) -> None:
        self._in_step = True
