"""Runs in slices on a clock that is moved by hand: steps, stalls and saves take as long as a test says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory_store import MemoryStore

from lorry.clock import ManualClock
from lorry.errors import YieldSlice
from lorry.model.function import ResumePolicy
from lorry.runtime.slice import Slice
from lorry.train.capture import Snapshot
from lorry.train.manifest import Entry, Head, Manifest
from lorry.train.options import Options
from lorry.train.policy import Every
from lorry.train.run import Run
from lorry.train.saver import Checkpoint
from lorry.train.server_heads import Past
from lorry.train.slices import SliceEnd


class SlowSaver:
    """`Saver` without a thread: what it writes is committed so many seconds later."""

    def __init__(self, store: MemoryStore, after: Callable[[Checkpoint], None], clock: ManualClock, seconds: float):
        self._store, self._after, self._clock, self._seconds = store, after, clock, seconds
        self._writing: tuple[float, Callable[[], Checkpoint]] | None = None
        self.failures = 0
        self.committed_at: list[float] = []

    @property
    def busy(self) -> bool:
        return self._writing is not None and self._clock.now < self._writing[0]

    @property
    def has_news(self) -> bool:
        return self._writing is not None and not self.busy

    def start(self, snapshot: Snapshot, describe: Callable[[tuple[Entry, ...]], Manifest], stall: float) -> None:
        assert self._writing is None or not self.busy, "one save at a time"
        self.news()
        manifest = describe(self._entries(snapshot))
        self._writing = (self._clock.now + self._seconds, lambda: self._commit(manifest, stall))

    def write(self, snapshot: Snapshot, describe: Callable[[tuple[Entry, ...]], Manifest], stall: float) -> Checkpoint:
        self._clock.advance(self._seconds)
        return self._commit(describe(self._entries(snapshot)), stall)

    def _entries(self, snapshot: Snapshot) -> tuple[Entry, ...]:
        return tuple(
            Entry(name=piece.name, dtype=piece.dtype, shape=piece.shape, chunks=(self._store.put(piece.data)[0],))
            for piece in snapshot.pieces
        )

    def wait(self) -> None:
        if self.busy:
            assert self._writing is not None
            self._clock.advance(self._writing[0] - self._clock.now)

    def news(self) -> Checkpoint | None:
        if not self.has_news:
            return None
        assert self._writing is not None
        (_, commit), self._writing = self._writing, None
        return commit()

    def _commit(self, manifest: Manifest, stall: float) -> Checkpoint:
        head: Head = self._store.commit(manifest)
        self.committed_at.append(self._clock.now)
        checkpoint = Checkpoint(
            manifest=head.manifest,
            step=head.step,
            created_at=manifest.created_at,
            stall=stall,
            persist=self._seconds,
            total_bytes=0,
            new_bytes=0,
        )
        self._after(checkpoint)
        return checkpoint


class Slices:
    """One run on one store; each `attempt` has a slice of its own."""

    def __init__(self, folder: Path, *, limit: float = 60.0, stall: float = 0.1, persist: float = 0.5) -> None:
        self.folder, self.limit, self.stall, self.persist = folder, limit, stall, persist
        self.clock, self.store = ManualClock(), MemoryStore()
        self.runs: list[Run] = []
        self.slice = Slice(limit, self.clock.now, ResumePolicy())

    @property
    def end(self) -> float:
        return self.slice.began + self.slice.limit

    @property
    def head(self) -> int:
        return self.store.current.step if self.store.current else 0

    def attempt(self, *, start: float = 5.0, every: object = "auto", past: Past | None = None, **track: Any) -> Run:
        """A new one, up to its restore, `start` seconds after the slice began."""
        self.slice = Slice(self.limit, self.clock.now, ResumePolicy())
        self.clock.advance(start)
        options = Options(every=Every.parse(every))
        run = Run(self.store, self.folder, options, clock=self.clock, ending=SliceEnd(self.slice), past=past)
        saver = SlowSaver(self.store, run._checkpoints._committed, self.clock, self.persist)
        run._checkpoints.saver = run._saver = saver  # type: ignore[assignment]
        take = run._checkpoints._staging.take

        def stalled(state: dict[str, Any]) -> Any:
            self.clock.advance(self.stall)
            return take(state)

        run._checkpoints._staging.take = stalled  # type: ignore[method-assign]
        run.track(**track)
        run.restore()
        self.runs.append(run)
        return run

    def train(self, run: Run, step: float = 1.0, most: int = 100_000) -> str | None:
        """Steps of so many seconds, until it yields (the reason) or has made `most`."""
        try:
            for _ in range(most):
                self.clock.advance(step)
                run.step()
        except YieldSlice as yielded:
            return yielded.reason
        return None

    def close(self) -> None:
        for run in self.runs:
            with contextlib.suppress(YieldSlice):
                run._close()
