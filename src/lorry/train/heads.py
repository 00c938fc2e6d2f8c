"""Who knows which checkpoint of a run is the newest, and which attempt may commit: the interface."""

from __future__ import annotations

from typing import Protocol

from lorry.train.manifest import Head


class Heads(Protocol):
    """The folder of the run is locked while `begin` and `commit` are asked. Any thread may ask."""

    def begin(self) -> int:
        """A token larger than any before, durable. Attempts that began earlier cannot commit any more."""
        ...

    def head(self) -> Head | None:
        """The newest committed checkpoint; None before the first. CorruptCheckpointError if nobody can tell."""
        ...

    def commit(self, head: Head) -> None:
        """By compare-and-swap, durable. StaleAttemptError if a newer attempt has begun. May be asked twice."""
        ...
