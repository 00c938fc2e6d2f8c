"""`lorry.run()`: training that can be killed at any moment and goes on where its last checkpoint was.

A run knows a `CheckpointStore` and a folder of its own for what people read (metrics, exports). On one machine the
store is in that folder too; nothing here relies on it.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from lorry.clock import Clock, SystemClock
from lorry.errors import CorruptCheckpointError, Error, ExecutionError, InvalidError
from lorry.storage.atomic import make_folder
from lorry.train import rng
from lorry.train.batches import Batches
from lorry.train.capture import Reader, Staging, on_its_device
from lorry.train.data import batches
from lorry.train.export import export
from lorry.train.fingerprint import changes, fingerprint
from lorry.train.lock import FolderLock
from lorry.train.manifest import Entry, Manifest
from lorry.train.metrics import FLUSH_SECONDS, MetricsLog
from lorry.train.policy import Every, Kept, interval, mean_seconds_to_interruption, retained, seconds
from lorry.train.saver import Checkpoint, Describe, Saver
from lorry.train.stop import StopSignals
from lorry.train.store import CheckpointStore
from lorry.train.structure import Flattener, rebuild
from lorry.train.tracked import Tracked, tracked

RNG, SAVED, PROGRESS = "lorry.rng", "lorry.saved", "lorry.progress"
"""Parts of the state beside the tracked objects, whose names have no dots."""
COLLECT_SECONDS = 600.0
MOST_MISSED = 100
"""Attempts that a gap between two tokens can stand for; a larger one was made by a store that lost count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    every: Every = field(default_factory=Every)
    keep_last: int = 2
    keep_every: float | None = None
    """Seconds."""
    rng: Literal["state", "counter"] = "state"
    seed: int = 0


def run(
    folder: str | os.PathLike[str] | None = None,
    *,
    every: str | int = "auto",
    keep_last: int = 2,
    keep_every: str | None = None,
    rng: Literal["state", "counter"] = "state",
    seed: int = 0,
) -> Run:
    """The training run of this script; started again, it is the same run.

    `folder`: default LORRY_RUN_DIR, or ./lorry-runs/<name of the script>. `every`: how often to save; "auto" works
    it out from what a checkpoint costs and how often training was interrupted; otherwise steps (200) or a time ("5m").
    `keep_last` checkpoints are kept, and of each `keep_every` ("1h") the first. `rng="counter"` starts the shared
    random generators afresh before each step, from `seed` and the step, instead of saving their state.

    AlreadyExistsError if another process trains in the folder.
    """
    if type(keep_last) is not int or keep_last < 1:
        raise InvalidError(f"keep_last={keep_last!r} must be a number of checkpoints, at least 1")
    if rng not in ("state", "counter"):
        raise InvalidError(f'rng={rng!r} must be "state" or "counter"')
    options = Options(
        every=Every.parse(every),
        keep_last=keep_last,
        keep_every=None if keep_every is None else seconds(keep_every, "keep_every"),
        rng=rng,
        seed=seed,
    )
    place = Path(folder or os.environ.get("LORRY_RUN_DIR") or Path("lorry-runs", _script_name()))
    from lorry.train.local_store import LocalStore

    lock = FolderLock(make_folder(place.absolute()))
    lock.acquire()
    try:
        return Run(LocalStore(place.absolute()), place.absolute(), options, release=lock.release)
    except BaseException:
        lock.release()
        raise


def _script_name() -> str:
    return Path(sys.argv[0] if sys.argv else "").stem.strip("-") or "interactive"


class Run:
    """Track what changes, restore once, then call `step` at the end of each step."""

    def __init__(
        self,
        store: CheckpointStore,
        folder: Path,
        options: Options,
        *,
        clock: Clock | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        """For what people read: metrics.jsonl, exported models."""
        self.restored = False
        """Whether this attempt goes on from a checkpoint."""
        self.last_checkpoint: Checkpoint | None = None
        """Of this attempt."""
        self.skipped = 0
        """Checkpoints that were due while another was still being written."""
        self._store = store
        self._options = options
        self._clock = clock or SystemClock()
        self._release = release
        self._tracked: dict[str, Tracked] = {}
        self._saved: dict[str, Any] = {}
        self._metrics = MetricsLog(folder / "metrics.jsonl")
        self._staging = Staging()
        self._saver = Saver(store, self._committed)
        self._stop = StopSignals()
        self._pid = os.getpid()
        self._open = True
        self._token: int | None = None
        """Of this attempt; None before `restore`."""
        self._step = self._saved_step = 0
        self._parent: str | None = None
        self._kept: list[Kept] = []
        self._interruptions = 0
        self._seconds_before = 0.0
        self._stall: float | None = None
        self._persist = 0.0
        self._fingerprint: dict[str, str] = {}
        self._stepped_at = self._began_at = self._collected_at = self._clock.monotonic()
        self._step_seconds: deque[float] = deque(maxlen=200)
        self._in_step = False
        """A tracked optimizer has stepped since the last safe point: the state is between two steps."""
        self._due_step = sys.maxsize
        self._due_at = self._look_at = float("inf")

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
            self._tracked[name] = tracked(name, value)
            if hasattr(value, "register_step_post_hook"):
                value.register_step_post_hook(self._optimizer_stepped)

    def data(self, source: Any, **options: Any) -> Batches:
        """Shuffled batches that know their place; track them too. `source` is a path or a dataset; the options are
        those of `lorry.train.batches.Batches`."""
        return batches(source, **options)

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
        token = self._store.begin()
        manifest = self._load_newest(token)
        self.restored = manifest is not None
        if manifest is None:
            flat = Flattener()
            for name, part in self._state(orderly=False).items():  # what cannot be saved shows now, not in an hour
                flat.tree(part, name)
        self._metrics.cut_back(self._step)
        if self._options.rng == "counter":
            rng.seed(rng.seed_for(self._options.seed, self._step))
        self._token = token
        self._saved_step = self._step
        self._stop.install()
        atexit.register(self._at_exit)
        self._began_at = self._stepped_at = self._clock.monotonic()
        self._plan(self._began_at)
        return self.restored

    def _load_newest(self, token: int) -> Manifest | None:
        broken: CorruptCheckpointError | None = None
        for manifest_id in self._store.history():
            try:
                manifest = self._store.manifest(manifest_id)
                state = self._read(manifest)
            except CorruptCheckpointError as error:
                broken = broken or error
                continue
            if broken is not None:
                warnings.warn(
                    f"The newest checkpoint is damaged ({broken}). Going on from step {manifest.step:,}", stacklevel=4
                )
            self._take(manifest, state, token)
            return manifest
        if broken is not None:
            raise CorruptCheckpointError(f"No checkpoint is whole. The newest: {broken}") from broken
        return None

    def _read(self, manifest: Manifest) -> dict[str, Any]:
        """All of it, before anything is changed."""
        names = {name for name in manifest.structure if "." not in name}
        missing, unknown = sorted(names - self._tracked.keys()), sorted(self._tracked.keys() - names)
        if missing or unknown:
            raise InvalidError(
                f"The checkpoint at step {manifest.step:,} does not fit what is tracked. In it and not tracked: "
                f"{', '.join(missing) or 'nothing'}. Tracked and not in it: {', '.join(unknown) or 'nothing'}. Track "
                f"the same names, or start anew in another folder (this is {self.folder})"
            )
        leaf = Reader(self._store, manifest).leaf
        placed = on_its_device(leaf)
        return {
            name: rebuild(tree, placed if name in self._tracked and self._tracked[name].plain else leaf)
            for name, tree in manifest.structure.items()
        }

    def _take(self, manifest: Manifest, state: dict[str, Any], token: int) -> None:
        for name, part in self._tracked.items():
            part.load(state[name])
        self._saved = state[SAVED]
        progress = state[PROGRESS]
        self._step, self._parent, self._stall = manifest.step, manifest.id, manifest.stall_seconds
        self._kept = [*(Kept(*row) for row in progress["kept"]), Kept(manifest.id, manifest.step, manifest.created_at)]
        missed = token - manifest.token  # each attempt since then was interrupted before it saved
        missed = missed if missed <= MOST_MISSED else 1
        self._interruptions = progress["interruptions"] + missed - progress["orderly"]
        self._seconds_before = progress["seconds"]
        different = changes(manifest.fingerprint, fingerprint())
        if different:
            warnings.warn(
                "The checkpoint was made in another environment, so the result may differ in its last bits: "
                + "; ".join(different),
                stacklevel=5,
            )
        if RNG in state:
            rng.restore(state[RNG])  # last: nothing may draw after it

    # The safe point

    @property
    def step_number(self) -> int:
        """Steps that are done, in all attempts together."""
        return self._step

    def step(self, **metrics: Any) -> None:
        """The one safe point, at the end of each step: counts it, notes the metrics, saves if it is time, stops if
        somebody asked. Everything tracked must be as it is between two steps."""
        if self._token is None or not self._open:
            raise ExecutionError("run.step comes after run.restore (also at the first attempt) and before run.finish")
        self._step = step = self._step + 1
        self._in_step = False
        now = self._clock.monotonic()
        self._step_seconds.append(now - self._stepped_at)
        self._stepped_at = now
        if metrics:
            self._metrics.add(step, self._clock.wall(), metrics)
        if self._options.rng == "counter":
            rng.seed(rng.seed_for(self._options.seed, step))
        if now >= self._look_at or step >= self._due_step or self._stop.received or self._saver.has_news:
            self._safe_point(now)

    def _safe_point(self, now: float) -> None:
        self._hear()
        if self._stop.received:
            self._save_and_wait()
            self._close()
            self._stop.raise_it()
        if now >= self._due_at or self._step >= self._due_step:
            if self._saver.busy:
                self.skipped += 1
            else:
                self._saver.start(*self._capture(orderly=False))
            self._plan(self._clock.monotonic())
        self._metrics.flush()
        self._look_at = min(self._due_at, now + FLUSH_SECONDS)

    def _plan(self, now: float) -> None:
        """When the next checkpoint is due."""
        every = self._options.every
        self._due_step, self._due_at = sys.maxsize, float("inf")
        if every.steps is not None:
            self._due_step = (self._step // every.steps + 1) * every.steps
        elif every.seconds is not None:
            self._due_at = now + every.seconds
        elif self._stall is None:
            self._due_step = self._step + 1  # at once: what a checkpoint costs has to be seen
        else:
            mean = mean_seconds_to_interruption(self._interruptions, self._seconds_before + now - self._began_at)
            steps = self._step_seconds
            step = sum(steps) / len(steps) if steps else 0.0
            self._due_at = now + interval(self._stall, mean, persist=self._persist, step=step)
        self._look_at = min(self._due_at, now + FLUSH_SECONDS)

    # Saving

    def _state(self, *, orderly: bool) -> dict[str, Any]:
        state: dict[str, Any] = {name: part.state() for name, part in self._tracked.items()}
        if self._options.rng == "state":
            state[RNG] = rng.capture()
        state[SAVED] = self._saved
        state[PROGRESS] = {
            "interruptions": self._interruptions,
            "seconds": self._seconds_before + self._clock.monotonic() - self._began_at,
            "orderly": orderly,
            "kept": [list(astuple(kept)) for kept in self._kept],
        }
        return state

    def _capture(self, *, orderly: bool) -> tuple[Any, Describe, float]:
        """The stall: everything until this returns is time that training stands still."""
        began = self._clock.monotonic()
        self._metrics.flush()
        snapshot = self._staging.take(self._state(orderly=orderly))
        self._fingerprint = self._fingerprint or fingerprint()
        stall = self._stall = self._clock.monotonic() - began
        assert self._token is not None
        step, token, parent, created_at = self._step, self._token, self._parent, self._clock.wall()

        def describe(entries: tuple[Entry, ...]) -> Manifest:
            return Manifest(
                run_id=self.folder.name,
                step=step,
                token=token,
                parent=parent,
                entries=entries,
                structure=snapshot.tree,
                fingerprint=self._fingerprint,
                created_at=created_at,
                stall_seconds=stall,
            )

        self._saved_step = step
        return snapshot, describe, stall

    def _committed(self, checkpoint: Checkpoint) -> None:
        """On the thread that saved."""
        self._parent = checkpoint.manifest
        self._kept = retained(
            [*self._kept, Kept(checkpoint.manifest, checkpoint.step, checkpoint.created_at)],
            keep_last=self._options.keep_last,
            keep_every=self._options.keep_every,
        )
        if self._clock.monotonic() - self._collected_at > COLLECT_SECONDS:
            self._collected_at = self._clock.monotonic()
            self._store.collect({kept.manifest for kept in self._kept})

    def _hear(self) -> None:
        """What became of the last save."""
        outcome = self._saver.news()
        if isinstance(outcome, Checkpoint):
            self._note(outcome)
        elif outcome is not None and self._saver.failures == 1:
            warnings.warn(f"A checkpoint could not be saved; training goes on and tries again: {outcome}", stacklevel=4)

    def _note(self, checkpoint: Checkpoint) -> None:
        self.last_checkpoint = checkpoint
        self._persist = checkpoint.persist
        row = {
            "step": checkpoint.step,
            "stall": round(checkpoint.stall, 6),
            "persist": round(checkpoint.persist, 6),
            "bytes": checkpoint.total_bytes,
            "new_bytes": checkpoint.new_bytes,
        }
        self._metrics.add(self._step, self._clock.wall(), {"checkpoint": row})

    def _save_and_wait(self) -> None:
        """The last checkpoint of this attempt, durable when this returns."""
        self._saver.wait()
        self._hear()
        self._note(self._saver.write(*self._capture(orderly=True)))

    # The end

    def export(self, model: Any, name: str = "model") -> Path:
        """Write a model (or tensors by name) as <folder>/<name>.safetensors, whole or not at all."""
        return export(model, self.folder / f"{name}.safetensors")

    def finish(self) -> None:
        """Save the last step, unless it is saved, and end the run's bookkeeping. It happens by itself when the
        program ends without an exception. After a stop signal it ends the program, as `step` does."""
        if not self._open or os.getpid() != self._pid:
            return
        try:
            self._finish()
        finally:
            self._close()
        if self._stop.received:
            self._stop.raise_it()

    def _finish(self) -> None:
        self._saver.wait()
        self._hear()
        if self._step > self._saved_step or self._saver.failures:
            if self._in_step:
                warnings.warn(
                    "The program ends between two steps (an optimizer has stepped since the last run.step()), so the "
                    f"newest checkpoint is that of step {self._saved_step:,}",
                    stacklevel=4,
                )
            else:
                self._save_and_wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        elif self._open and os.getpid() == self._pid:
            self._abandon()

    def _at_exit(self) -> None:
        if getattr(sys, "last_value", None) is None:
            self.finish()
        elif self._open and os.getpid() == self._pid:
            self._abandon()

    def _abandon(self) -> None:
        """After an exception: the state may be half of a step, so only what is being written is completed."""
        self._saver.wait()
        try:
            self._hear()
        except Error as error:  # the exception that ends the program matters more
            warnings.warn(f"The last checkpoint could not be saved: {error}", stacklevel=3)
        finally:
            self._close()

    def _close(self) -> None:
        self._open = False
        self._metrics.flush()
        self._stop.uninstall()
        atexit.unregister(self._at_exit)
        self._release()

    def _optimizer_stepped(self, *_: Any) -> None:
        self._in_step = True
