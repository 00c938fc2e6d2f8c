"""A blob for a test, in one piece."""

from __future__ import annotations

from lorry.storage.blobs import BlobStore


def put(blobs: BlobStore, data: bytes) -> str:
    with blobs.writer() as writer:
        writer.write(data)
        return writer.commit()


def names(blobs: BlobStore) -> set[str]:
    """Digests of all that are there."""
    return {path.name for path, _stat in blobs._scan()}
