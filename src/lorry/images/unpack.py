"""Unpacks an image archive into one folder: a program that runs in a build's sandbox, as its uid 0.

    python -I -S -c … unpack ARCHIVE DIGEST FOLDER    the archive's layers, lowest first, on top of each other
    python -I -S -c … prepare FOLDER                  mount points in a root file system made by somebody else

The layers are merged while they are unpacked, so the folder holds no whiteouts. A blob's digest is checked before
anything of it is written. Device nodes, sockets and FIFOs are left out, set-user-id bits dropped, extended attributes
not taken over. Standard library only.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Protocol, cast

from lorry.errors import ImageBuildError
from lorry.images.archive import ArchiveLayer, read_archive
from lorry.images.beneath import Beneath, UnsafePath, parts_of

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
MOST_ID = 65_534
"""Owners beyond what a build's namespace knows become nobody."""
LATEST = 1 << 33
"""Seconds; a time stamp beyond is cut."""
MOUNT_POINTS = ("dev", "etc", "opt/lorry/lorry", "proc", "root", "run/lorry", "sys", "tmp", "var/tmp")
MOUNTED_FILES = ("etc/hostname", "etc/hosts", "etc/resolv.conf")


class Stream(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def unpack(archive: str, digest: str, folder: str) -> None:
    before = _version(archive)
    image = read_archive(archive)
    if image.digest != digest:
        raise ImageBuildError(f"{archive} was replaced: it holds {image.digest}, not {digest} any more")
    root = Beneath(folder)
    try:
        with tarfile.open(archive, "r:") as outer:
            members = {os.path.normpath(member.name): member for member in outer}
            for number, layer in enumerate(image.layers, 1):
                print(f"unpacking layer {number} of {len(image.layers)} ({layer.digest[:19]})", flush=True)
                _unpack_layer(outer, members[layer.member], layer, root)
        root.folder(parts_of(image.workdir))  # made where no layer has it, as by others who run images
    finally:
        root.close()
    if _version(archive) != before:  # after digests were checked, perhaps
        raise ImageBuildError(f"{archive} was written to while it was unpacked: build again")
    prepare(folder)


def _version(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def prepare(folder: str) -> None:
    """Real folders and files where containers get something mounted; a link in such a place is replaced."""
    root = Beneath(folder)
    try:
        for name in MOUNT_POINTS:
            parts = parts_of(name)
            for length in range(1, len(parts) + 1):
                if not _is(folder, parts[:length], os.path.isdir):
                    root.make_folder(parts[:length], 0o755, 0, 0)
        for name in MOUNTED_FILES:
            if not _is(folder, parts_of(name), os.path.isfile):
                root.make_file(parts_of(name), io.BytesIO(), 0o644, 0, 0, 0)
    finally:
        root.close()


def _is(folder: str, parts: tuple[str, ...], kind: Callable[[str], bool]) -> bool:
    path = os.path.join(folder, *parts)
    return not os.path.islink(path) and kind(path)


def _unpack_layer(outer: tarfile.TarFile, member: tarfile.TarInfo, layer: ArchiveLayer, root: Beneath) -> None:
    """Twice through the blob: for its digest and what it deletes from the layers below, then for its files."""
    for parts, opaque in _deletions(outer, member, layer):
        if opaque:
            root.empty(parts)
        elif parts:
            root.remove(parts)
    for entry, content in _entries(_blob(outer, member)):
        name = parts_of(entry.name)
        if name and not name[-1].startswith(WHITEOUT):
            _put(entry, name, content, root)


def _deletions(
    outer: tarfile.TarFile, member: tarfile.TarInfo, layer: ArchiveLayer
) -> list[tuple[tuple[str, ...], bool]]:
    packed = _Hashed(_blob(outer, member))
    unpacked = _Hashed(_plain(packed))
    found = []
    with tarfile.open(fileobj=unpacked, mode="r|") as stream:
        for entry in stream:
            name = parts_of(entry.name)
            if name and name[-1] == OPAQUE:
                found.append((name[:-1], True))
            elif name and name[-1].startswith(WHITEOUT):
                found.append((_deleted(name), False))
    seen = (unpacked if layer.unpacked else packed).finish()
    if f"sha256:{seen}" != layer.digest:
        raise ImageBuildError(
            f"the layer {layer.member} has the digest sha256:{seen}, not {layer.digest}: it is damaged"
        )
    return found


def _deleted(name: tuple[str, ...]) -> tuple[str, ...]:
    """What a whiteout deletes. `.wh...` would be the folder above: a name is safe only once its mark is off."""
    target = name[-1].removeprefix(WHITEOUT)
    if target in ("", ".", ".."):
        raise UnsafePath(f"{'/'.join(name)!r} deletes no file of the image")
    return (*name[:-1], target)


def _entries(blob: Stream) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    with tarfile.open(fileobj=cast("IO[bytes]", _plain(blob)), mode="r|") as stream:
        for entry in stream:
            yield entry, stream.extractfile(entry) if entry.isreg() else None


def _put(entry: tarfile.TarInfo, name: tuple[str, ...], content: IO[bytes] | None, root: Beneath) -> None:
    uid, gid = (max(0, min(number, MOST_ID)) for number in (entry.uid, entry.gid))
    if content is not None:
        root.make_file(name, content, entry.mode, uid, gid, int(max(0, min(entry.mtime, LATEST))))
    elif entry.isdir():
        root.make_folder(name, entry.mode, uid, gid)
    elif entry.issym():
        root.make_link(name, entry.linkname, uid, gid)
    elif entry.islnk():
        root.make_hard_link(name, parts_of(entry.linkname))


def _blob(outer: tarfile.TarFile, member: tarfile.TarInfo) -> Stream:
    file = outer.extractfile(member)
    if file is None:
        raise ImageBuildError(f"{member.name} is no file in the archive")
    return file


def _plain(blob: Stream) -> Stream:
    """The tar inside, whether it is compressed or not."""
    start = blob.read(4)
    whole = _Rest(start, blob)
    if start.startswith(GZIP):
        return io.BufferedReader(_Gunzip(whole), 1 << 18)
    if start.startswith(ZSTD):
        raise ImageBuildError(
            "its layers are compressed with zstd, which is not read here: write it again with gzip, for example "
            "`skopeo copy --dest-compress-format gzip oci-archive:OLD.tar oci-archive:NEW.tar`"
        )
    return whole


class _Rest(io.RawIOBase):
    """A stream of which the first bytes were read already."""

    def __init__(self, start: bytes, rest: Stream) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._start:
            start, self._start = (self._start, b"") if size < 0 else (self._start[:size], self._start[size:])
            return start
        return self._rest.read(size)

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


class _Gunzip(io.RawIOBase):
    """`gzip.GzipFile` wants to seek; concatenated members occur in layers (stargz)."""

    def __init__(self, packed: Stream) -> None:
        self._packed = packed
        self._unpacker = zlib.decompressobj(31)
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while True:
            if self._unpacker.eof:
                self._input = self._unpacker.unused_data or self._packed.read(1 << 16)
                if not self._input:
                    return 0
                self._unpacker = zlib.decompressobj(31)
            elif not self._input:
                self._input = self._packed.read(1 << 16)
                if not self._input:
                    raise EOFError("a compressed layer ends too early")
            data = self._unpacker.decompress(self._input, len(view))
            self._input = self._unpacker.unconsumed_tail
            if data:
                view[: len(data)] = data
                return len(data)


class _Hashed(io.RawIOBase):
    def __init__(self, inner: Stream) -> None:
        self._inner = inner
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self._hash.update(data)
        return data

    def finish(self) -> str:
        """Reads to the end: a tar reader stops at the end mark."""
        while self.read(1 << 18):
            pass
        return self._hash.hexdigest()


def main(words: list[str]) -> int:
    try:
        (unpack if words[0] == "unpack" else prepare)(*words[1:])
    except Exception as error:  # whatever a hostile archive brings about is a line of the build's log
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
