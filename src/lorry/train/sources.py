"""Where the bytes of samples come from: a file as it was at one time, read by range."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorry.errors import InvalidError

STEP = 1 << 20
"""Bytes that are brought into memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One state of one file, as far as its folder entry tells."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int = field(compare=False)
    """Tells of new content when the other time was set back; changes with names and rights too."""

    @classmethod
    def of(cls, path: str, descriptor: int) -> Version:
        stat = os.fstat(descriptor)
        return cls(
            path=path, size=stat.st_size, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino, ctime_ns=stat.st_ctime_ns
        )

    @property
    def key(self) -> str:
        """`<path>-<state>`, hashed: names what is kept of it. Without the inode, which some network mounts invent."""
        state = f"{self.size}/{self.mtime_ns}/{self.ctime_ns}"
        return "-".join(hashlib.sha256(part).hexdigest()[:32] for part in (os.fsencode(self.path), state.encode()))


class Source(Protocol):
    """Bytes by range, safe to use from threads."""

    def check(self) -> None:
        """InvalidError when it is not any more what was indexed."""
        ...

    def read(self, offset: int, size: int) -> bytes: ...

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """As many bytes as fit and are there; for reading from end to end."""
        ...

    def fetch(self, offset: int, size: int) -> None:
        """Bring this range near. Returns when it is there."""
        ...


class OpenFile:
    """What sources have in common: the file stays open, so that one that is renamed over it does not matter."""

    def __init__(self, version: Version) -> None:
        self._version = version
        self._descriptor = os.open(version.path, os.O_RDONLY | os.O_CLOEXEC)
        self.check()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # never opened
            os.close(self._descriptor)

    def check(self) -> None:
        if Version.of(self._version.path, self._descriptor) != self._version:
            raise InvalidError(
                f"{self._version.path} is not the file any more that was indexed: it was changed or replaced while it "
                "was in use. Start again; rename a new file over the old one to change data without this error"
            )


class MappedFile(OpenFile):
    """A local file. Its blocks lie in the kernel's page cache: bounded, given back under pressure, and shared by
    threads, processes and attempts. A file that is cut short under a mapping ends the process with SIGBUS, hence a
    `check` before each batch."""

    def __init__(self, version: Version) -> None:
        super().__init__(version)
        self._mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) if version.size else b""

    def read(self, offset: int, size: int) -> bytes:
        return self._mapped[offset : offset + size]

    def read_into(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self._descriptor, [buffer], offset)

    def fetch(self, offset: int, size: int) -> None:
        """Reads it, and drops what it read. Asking the kernel (WILLNEED) would return at once, with all of it before
        the reads that a batch waits for, and it takes only the first part of a long range. Nor shall the kernel read
        on behind the range, up to 8 MiB on some machines."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        scratch = memoryview(bytearray(min(STEP, size)))
        for start in range(offset, offset + size, STEP):
            os.preadv(self._descriptor, [scratch[: offset + size - start]], start)


def cache_folder(kind: str) -> Path:
    """In a container it is a folder of the machine, which outlives the attempt."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorry" / kind
