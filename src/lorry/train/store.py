"""Where checkpoints are kept: the interface of every store, and the search for one to restore."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

from lorry.errors import CorruptCheckpointError
from lorry.train.manifest import CHUNK_SIZE, Chunk, Head, Manifest


class CheckpointStore(Protocol):
    """The checkpoints of one run. Bytes go in first, then the manifest that names them, then HEAD moves: a crash
    anywhere leaves the HEAD before it. Every verb may raise StorageFullError or ResourceError; what was committed
    stays committed. One thread at a time."""

    def begin(self) -> int:
        """A token larger than any before. Attempts that began earlier cannot commit any more."""
        ...

    def head(self) -> Head | None:
        """None before the first commit. CorruptCheckpointError if it is damaged; it is then moved aside."""
        ...

    def history(self) -> Iterator[str]:
        """Ids of the manifests to try at a restore, best first: HEAD's, its ancestors, then any other by token and
        step. Ends early where nothing is left. CorruptCheckpointError if there was something once and all is lost."""
        ...

    def put(self, data: memoryview, sha256: str | None = None) -> tuple[Chunk, int]:
        """Keep bytes; `sha256` is their digest, if the caller knows it. Also how many were written: 0 if they were
        there. They are durable when `commit` returns, and the buffer is free again when this does."""
        ...

    def commit(self, manifest: Manifest) -> Head:
        """Its chunks durable, then the manifest, then HEAD by compare-and-swap. StaleAttemptError if a newer attempt
        has begun, CorruptCheckpointError if a chunk is not there: then HEAD is as before."""
        ...

    def manifest(self, manifest_id: str) -> Manifest:
        """Verified. CorruptCheckpointError if it is damaged (it is then moved aside) or missing."""
        ...

    def read(self, chunk: Chunk, memory: memoryview) -> None:
        """Into memory of its size, and verified there. CorruptCheckpointError if it is damaged (it is then moved
        aside) or missing. Several threads may read at a time."""
        ...

    def collect(self, keep: Collection[str], *, sweep: bool = True) -> int:
        """Remove manifests outside `keep` and chunks that no remaining one names: those that this attempt made at
        once, and with `sweep` others too if they are older than an hour. HEAD's manifest always stays. Bytes freed."""
        ...


def verify(store: CheckpointStore, manifest: Manifest) -> None:
    """Read all of it. CorruptCheckpointError names the first file that is damaged or missing."""
    memory = memoryview(bytearray(CHUNK_SIZE))
    for chunk in manifest.chunks():
        store.read(chunk, memory[: chunk.size])


def resolve(store: CheckpointStore) -> Manifest | None:
    """The newest checkpoint that verifies: HEAD's, or the best that is left. None if there was never one;
    CorruptCheckpointError if there were and none is whole, for to start over in silence would lose all work."""
    broken: CorruptCheckpointError | None = None
    for manifest_id in store.history():
        try:
            manifest = store.manifest(manifest_id)
            verify(store, manifest)
        except CorruptCheckpointError as error:
            broken = broken or error
        else:
            return manifest
    if broken is not None:
        raise CorruptCheckpointError(f"No checkpoint is whole. The newest: {broken}") from broken
    return None
