"""What a checkpoint is: pieces of bytes named by their SHA-256, and a manifest that says how they make up the state."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from lorry.wire.codec import to_json

CHUNK_SIZE = 8 << 20
"""Bytes. A tensor is cut every so many, from its start: what did not change gives the same chunks again."""
BLOB = "bytes"
"""The dtype of an entry that is no tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Bytes, known by their content."""

    sha256: str
    """64 lower-case hex digits."""
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor, or a blob: its chunks, one after the other."""

    name: str
    dtype: str
    """"bytes" for a blob."""
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One checkpoint. It never changes: its id is the digest of its JSON."""

    run_id: str
    step: int
    token: int
    """Of the attempt that made it; `CheckpointStore.begin`."""
    parent: str | None
    """Id of the manifest that the attempt had committed, or started from, before."""
    entries: tuple[Entry, ...]
    structure: Any
    """A JSON tree in which {"$entry": name} stands for a tensor or blob."""
    fingerprint: dict[str, str]
    """The environment, where it can change the result."""
    created_at: float
    """Unix seconds, for people."""
    stall_seconds: float
    """How long training stood still for it."""

    @property
    def id(self) -> str:
        return hashlib.sha256(to_json(self).encode()).hexdigest()

    def chunks(self) -> set[Chunk]:
        """Each once."""
        return {chunk for entry in self.entries for chunk in entry.chunks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest committed checkpoint."""

    manifest: str
    step: int
    token: int
