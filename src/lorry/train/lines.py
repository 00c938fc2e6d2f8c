"""Lines of files as samples with a number: `len`, `[i]`, and many at once, without reading what is not asked for.

It is a map-style Dataset as torch means it, can be sent to other processes, and is safe to use from threads.
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from lorry.errors import InvalidError
from lorry.train.blocks import FarFile, far, folder_for_blocks
from lorry.train.index import LineIndex, open_index
from lorry.train.order import WINDOW
from lorry.train.sources import MappedFile, Source, Version

MAX_OPEN = 64
"""Files open at a time; each has three descriptors of the 1,024 that a process commonly may have."""


class FileRecord(NamedTuple):
    """What a cursor keeps of a file, to see later whether it is the same. The content decides: a copy is the same."""

    name: str
    size: int
    lines: int
    sha256: str


class Lines(Sequence[Any]):
    """Samples of several files, in order. `parse` makes one of a line's text; ValueError says that it cannot."""

    def __init__(self, paths: Iterable[str], parse: Callable[[str], Any] | None = None) -> None:
        self._parse = parse
        self._open: dict[int, tuple[LineIndex, Source]] = {}
        self._versions = [_version(os.path.abspath(path)) for path in paths]
        top = os.path.commonpath([os.path.dirname(version.path) for version in self._versions] or ["/"])
        self.files = tuple(_record(version, os.path.relpath(version.path, top)) for version in self._versions)
        self._ends = list(accumulate(file.lines for file in self.files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return self.__getitems__(range(len(self))[number])
        return self.__getitems__((range(len(self))[number],))[0]

    def __getitems__(self, numbers: Iterable[int]) -> list[Any]:
        """Many at once: torch's DataLoader asks so too."""
        parse, found, checked = self._parse, [], set[int]()
        file = first = stop = start = 0
        try:
            for number in numbers:
                if not first <= number < stop:
                    file, first, stop = self._place(number)
                    index, source = self._opened(file)
                    starts, read = index.starts, source.read
                    if file not in checked:
                        source.check()
                        checked.add(file)
                start = starts[number - first]
                text = read(start, starts[number - first + 1] - start).rstrip(b"\r\n").decode()
                found.append(text if parse is None else parse(text))
        except ValueError as e:
            raise InvalidError(f"{self._versions[file].path}, line at byte {start}: {e}") from e
        return found

    @property
    def windows(self) -> int:
        """How many the order is made of: see order.py."""
        return max(1, -(-sum(file.size for file in self.files) // WINDOW))

    def fetch(self, run: range) -> None:
        """Bring these samples, which are neighbours, near. Returns when they are there."""
        number = run.start
        while number < run.stop:
            file, first, end = self._place(number)
            index, source = self._opened(file)
            stop = min(run.stop, end)
            start = index.starts[number - first]
            source.fetch(start, index.starts[stop - first] - start)
            number = stop

    def _place(self, number: int) -> tuple[int, int, int]:
        """The file that a sample lies in, its first, and the one behind its last."""
        file = bisect_right(self._ends, number)
        return file, self._ends[file] - self.files[file].lines, self._ends[file]

    def _opened(self, file: int) -> tuple[LineIndex, Source]:
        """Who still reads a file that is dropped here keeps it open by holding it."""
        found = self._open.get(file)
        if found is None:
            version = self._versions[file]
            source = _source(version)
            found = open_index(version, source), source
            while len(self._open) >= MAX_OPEN:
                with contextlib.suppress(KeyError, StopIteration, RuntimeError):  # another thread drops too
                    self._open.pop(next(iter(self._open)))
            self._open[file] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def _version(path: str) -> Version:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise InvalidError(f"{path} cannot be read: {e.strerror}") from e
    try:
        return Version.of(path, descriptor)
    finally:
        os.close(descriptor)


def _source(version: Version) -> Source:
    folder = folder_for_blocks() if far(version.path) else None
    return MappedFile(version) if folder is None else FarFile(version, folder)


def _record(version: Version, name: str) -> FileRecord:
    index = open_index(version, _source(version))
    return FileRecord(name, version.size, index.count, index.sha256)
