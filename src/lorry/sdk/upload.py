"""Files to the server: by content, only those that it lacks, in pieces."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lorry.sdk.steps import Ask, Steps

PIECE = 1 << 20


def upload_files(paths: Sequence[Path]) -> Steps[list[str]]:
    """Digests, in order; the server has all of them when this returns."""
    digests = []
    by_digest: dict[str, Path] = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests.append(digest)
        by_digest[digest] = path
    yield from upload_missing(by_digest)
    return digests


def upload_missing(paths: Mapping[str, Path]) -> Steps[None]:
    """Send what the server lacks. A file that changes meanwhile is refused by its digest."""
    reply = yield Ask("blobs_missing", {"digests": list(paths)})
    for digest in reply["missing"]:
        with paths[digest].open("rb") as file:
            yield from _pieces(digest, iter(lambda: file.read(PIECE), b""))


def upload_bytes(data: bytes) -> Steps[str]:
    digest = hashlib.sha256(data).hexdigest()
    reply = yield Ask("blobs_missing", {"digests": [digest]})
    if reply["missing"]:
        yield from _pieces(digest, iter([data]))
    return digest


def _pieces(digest: str, pieces: Iterable[bytes]) -> Steps[None]:
    for piece in pieces:
        yield Ask("blob_put", {"digest": digest, "data": base64.b64encode(piece).decode()})
    yield Ask("blob_put", {"digest": digest, "data": "", "last": True})
