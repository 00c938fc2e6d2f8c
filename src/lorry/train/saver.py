"""Writing a snapshot to the store while training goes on. One at a time; nothing ever queues behind another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

from lorry.errors import Error, StaleAttemptError
from lorry.train.capture import Piece, Snapshot
from lorry.train.manifest import CHUNK_SIZE, Entry, Head, Manifest
from lorry.train.store import CheckpointStore

FAILURES = 3
"""In a row, and a save's error ends the training: then it would only run on without being saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One that was committed, and what it cost."""

    manifest: str
    step: int
    created_at: float
    """Unix seconds."""
    stall: float
    """Seconds that training stood still."""
    persist: float
    """Seconds until it was committed, in the background."""
    total_bytes: int
    new_bytes: int
    """Those that the store did not have."""


Describe = Callable[[tuple[Entry, ...]], Manifest]
"""Makes the manifest of a snapshot's entries."""


class Saver:
    def __init__(self, store: CheckpointStore, after: Callable[[Checkpoint], None]) -> None:
        """`after` is called once a checkpoint is committed, on the thread that wrote it."""
        self._store = store
        self._after = after
        self._thread: threading.Thread | None = None
        self._outcome: Checkpoint | Exception | None = None
        self._digests: dict[int, list[str]] = {}
        """Of the chunks of each piece of the last snapshot, by `Piece.content`."""
        self.failures = 0
        """In a row."""

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_news(self) -> bool:
        return self._outcome is not None

    def start(self, snapshot: Snapshot, describe: Describe, stall: float) -> None:
        """In the background. A daemon thread: an interpreter that ends waits in `wait`, or not at all."""
        assert not self.busy, "one save at a time"
        job = (snapshot, describe, stall)
        self._thread = threading.Thread(target=self._run, args=job, name="lorry-checkpoint", daemon=True)
        self._thread.start()

    def write(self, snapshot: Snapshot, describe: Describe, stall: float) -> Checkpoint:
        """On the caller's thread, with its errors, while nothing else is being written."""
        began = time.monotonic()
        known, self._digests = self._digests, {}
        new = 0
        entries = []
        for piece in snapshot.pieces:
            digests = known.get(piece.content) or repeat(None)
            put = [self._store.put(part, digest) for part, digest in zip(_parts(piece), digests, strict=False)]
            chunks = tuple(chunk for chunk, _ in put)
            entries.append(Entry(name=piece.name, dtype=piece.dtype, shape=piece.shape, chunks=chunks))
            new += sum(written for _, written in put)
            self._digests[piece.content] = [chunk.sha256 for chunk in chunks]
        manifest = describe(tuple(entries))
        head: Head = self._store.commit(manifest)
        checkpoint = Checkpoint(
            manifest=head.manifest,
            step=manifest.step,
            created_at=manifest.created_at,
            stall=stall,
            persist=time.monotonic() - began,
            total_bytes=snapshot.size,
            new_bytes=new,
        )
        self._after(checkpoint)
        return checkpoint

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def news(self) -> Checkpoint | Exception | None:
        """What became of the last save, once. Raises its error if this attempt must not go on."""
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, Checkpoint):
            self.failures = 0
        elif outcome is not None:
            self.failures += 1
            if isinstance(outcome, StaleAttemptError):
                raise outcome
            if self.failures >= FAILURES:
                raise Error(
                    f"{FAILURES} checkpoints in a row could not be saved, so training stops: {outcome}"
                ) from outcome
        return outcome

    def _run(self, snapshot: Snapshot, describe: Describe, stall: float) -> None:
        try:
            self._outcome = self.write(snapshot, describe, stall)
        except Exception as error:
            self._outcome = error


def _parts(piece: Piece) -> list[memoryview]:
    """Its chunks to be."""
    return [piece.data[at : at + CHUNK_SIZE] for at in range(0, len(piece.data), CHUNK_SIZE)]
