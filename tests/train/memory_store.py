"""A checkpoint store in memory, with places to break."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator

from lorry.errors import CorruptCheckpointError, StaleAttemptError
from lorry.train.manifest import Chunk, Head, Manifest


class MemoryStore:
    """Runs that are given the same one share it, as attempts on one folder do."""

    def __init__(self) -> None:
        self.token = 0
        self.current: Head | None = None
        self.manifests: dict[str, Manifest] = {}
        self.chunks: dict[str, bytes] = {}
        self.kept: list[set[str]] = []
        """What `collect` was told."""
        self.before_put: Callable[[], object] = lambda: None
        self.gate = threading.Event()
        """While it is clear, `put` waits."""
        self.gate.set()

    def begin(self) -> int:
        self.token += 1
        return self.token

    def head(self) -> Head | None:
        return self.current

    def history(self) -> Iterator[str]:
        at = self.current.manifest if self.current else None
        while at is not None:
            yield at
            at = self.manifests[at].parent if at in self.manifests else None

    def put(self, data: memoryview, sha256: str | None = None) -> tuple[Chunk, int]:
        self.gate.wait()
        self.before_put()
        chunk = Chunk(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        assert sha256 in (None, chunk.sha256)
        new = 0 if chunk.sha256 in self.chunks else len(data)
        self.chunks.setdefault(chunk.sha256, bytes(data))
        return chunk, new

    def commit(self, manifest: Manifest) -> Head:
        if manifest.token < self.token:
            raise StaleAttemptError(f"attempt {self.token} has begun")
        self.manifests[manifest.id] = manifest
        self.current = Head(manifest=manifest.id, step=manifest.step, token=manifest.token)
        return self.current

    def manifest(self, manifest_id: str) -> Manifest:
        return self.manifests[manifest_id]

    def read(self, chunk: Chunk, memory: memoryview) -> None:
        data = self.chunks.get(chunk.sha256, b"")
        if hashlib.sha256(data).hexdigest() != chunk.sha256:
            raise CorruptCheckpointError(f"chunk {chunk.sha256[:12]} is damaged")
        memory[:] = data

    def collect(self, keep: Collection[str], *, sweep: bool = True) -> int:
        self.kept.append(set(keep))
        return 0
