"""Files to the server: by content, only those that it lacks, in pieces."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

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
            yield from _send(digest, file)


def upload_bytes(data: bytes) -> Steps[str]:
    digest = hashlib.sha256(data).hexdigest()
    reply = yield Ask("blobs_missing", {"digests": [digest]})
    if reply["missing"]:
        yield from _send(digest, io.BytesIO(data))
    return digest


def _send(digest: str, file: BinaryIO) -> Steps[None]:
    """In pieces, each from where the server says that it is: at 0 again if it was restarted meanwhile."""
    offset, done = 0, False
    while not done:
        file.seek(offset)
        data = file.read(PIECE)
        piece = {"digest": digest, "offset": offset, "data": base64.b64encode(data).decode(), "last": len(data) < PIECE}
        reply = yield Ask("blob_put", piece)
        offset, done = reply["size"], reply["done"]
