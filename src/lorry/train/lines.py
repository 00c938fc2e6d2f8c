"""Lines of files as samples with a number: `len`, `[i]`, and many at once, without reading what is not asked for.

It is a map-style Dataset as torch means it, can be sent to other processes, and is safe to use from threads.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from lorry.errors import InvalidError
from lorry.train.index import LineIndex, Version, open_index

MAX_OPEN = 64
"""Files open at a time; each has three descriptors of the 1,024 that a process commonly may have."""
MAX_AHEAD = 64 << 20
"""Bytes that the kernel is asked to bring in before they are needed."""


class Source(Protocol):
    """Bytes by range, safe to use from threads. A source that is not on this machine would keep blocks of 4 to 16 MiB
    behind it; for a local file the kernel does."""

    def check(self) -> None:
        """InvalidError when it is not any more what was indexed."""
        ...

    def read(self, offset: int, size: int) -> bytes: ...

    def expect(self, offset: int, size: int) -> None:
        """This range is needed soon. Returns at once."""
        ...


class MappedFile:
    """A local file. Its blocks lie in the kernel's page cache: bounded, given back under pressure, and shared by
    threads, processes and attempts, which is what a cache of our own would have to become."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._descriptor = os.open(version.path, os.O_RDONLY | os.O_CLOEXEC)
        self.check()
        self._mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # never opened
            os.close(self._descriptor)

    def check(self) -> None:
        """A file that is cut short under a mapping ends the process with SIGBUS, hence a look before each batch. One
        that is renamed over is no danger: this is still the old one, unless it is opened anew."""
        if Version.of(self._version.path, self._descriptor) != self._version:
            raise InvalidError(
                f"{self._version.path} is not the file any more that was indexed: it was changed or replaced while it "
                "was in use. Start again; rename a new file over the old one to change data without this error"
            )

    def read(self, offset: int, size: int) -> bytes:
        return self._mapped[offset : offset + size]

    def expect(self, offset: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)


class FileRecord(NamedTuple):
    """What a cursor keeps of a file, to see later whether it is the same. The content decides: a copy is the same."""

    name: str
    size: int
    lines: int
    sha256: str


class Lines(Sequence[Any]):
    """Samples of several files, in order. `parse` makes one of a line's text; ValueError says that it cannot."""

    def __init__(self, paths: Iterable[str], parse: Callable[[str], Any] = str) -> None:
        self._parse = parse
        self._open: dict[int, tuple[LineIndex, Source]] = {}
        self._disk_reads = -1
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
        found, checked, here = [], set[int](), -1
        for number in numbers:
            file = bisect_right(self._ends, number)
            if file != here:
                here, (index, source) = file, self._opened(file)
                first = self._ends[file] - index.count
                if file not in checked:
                    source.check()
                    checked.add(file)
            start, end = index.span(number - first)
            try:
                found.append(self._parse(source.read(start, end - start).rstrip(b"\r\n").decode()))
            except ValueError as e:
                raise InvalidError(f"{self._versions[file].path}, line at byte {start}: {e}") from e
        return found

    def expect(self, numbers: Iterable[int]) -> None:
        """These come next. Disk reads begin, many at a time, while the program works on what it has. If nothing was
        read from a disk since the last call, all is in memory, and asking would cost more than reading does."""
        before, self._disk_reads = self._disk_reads, _disk_reads()
        if before == self._disk_reads:
            return
        total = 0
        for number in numbers:
            file = bisect_right(self._ends, number)
            index, source = self._opened(file)
            start, end = index.span(number - self._ends[file] + index.count)
            total += end - start
            if total > MAX_AHEAD:
                return
            source.expect(start, end - start)

    def _opened(self, file: int) -> tuple[LineIndex, Source]:
        """Who still reads a file that is dropped here keeps it open by holding it."""
        found = self._open.get(file)
        if found is None:
            version = self._versions[file]
            source = MappedFile(version)
            found = open_index(version), source
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


def _record(version: Version, name: str) -> FileRecord:
    index = open_index(version)
    return FileRecord(name, version.size, index.count, index.sha256)


def _disk_reads() -> int:
    """Of this process so far, those that the kernel did for it ahead of time included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_inblock + usage.ru_majflt
