"""Every work that is not over, by call and chunk: what a cancellation or a second submission finds at once."""

from __future__ import annotations

from collections.abc import Iterable

from lorry.model.records import Selection
from lorry.scheduler.work import Work


class Register:
    def __init__(self) -> None:
        self._calls: dict[bytes, dict[int, dict[Work, None]]] = {}
        """Works as the keys of a dict: ordered, and removed in constant time."""

    def __len__(self) -> int:
        """Calls."""
        return len(self._calls)

    def add_new(self, work: Work) -> bool:
        """False, and nothing happens, if its chunk is known."""
        chunks = self._calls.get(work.call)
        if chunks is None:
            self._calls[work.call] = {work.chunk: {work: None}}
        elif work.chunk in chunks:
            return False
        else:
            chunks[work.chunk] = {work: None}
        return True

    def add(self, work: Work) -> None:
        self._calls.setdefault(work.call, {}).setdefault(work.chunk, {})[work] = None

    def split_off(self, work: Work, indices: Selection) -> Work:
        """A known work of its own for some inputs of `work`; the caller narrows or forgets that one."""
        part = work.part(indices)
        self.add(part)
        return part

    def forget(self, work: Work) -> None:
        """All its inputs have an outcome, or are in other works."""
        work.indices, work.count = (), 0
        chunks = self._calls[work.call]
        works = chunks[work.chunk]
        if len(works) > 1:
            del works[work]
        elif len(chunks) > 1:
            del chunks[work.chunk]
        else:
            del self._calls[work.call]

    def knows(self, call: bytes, chunk: int) -> bool:
        chunks = self._calls.get(call)
        return chunks is not None and chunk in chunks

    def chunk(self, call: bytes, chunk: int) -> Iterable[Work]:
        return tuple(self._calls.get(call, {}).get(chunk, ()))

    def call(self, call: bytes) -> list[Work]:
        return [work for works in self._calls.get(call, {}).values() for work in works]

    def calls_of(self, target: int) -> set[bytes]:
        """Looks at each call: not for the hot path."""
        return {call for call in self._calls if self._target(call) == target}

    def _target(self, call: bytes) -> int:
        works = next(iter(self._calls[call].values()))
        return next(iter(works)).target
