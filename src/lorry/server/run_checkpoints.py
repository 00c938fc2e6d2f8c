"""Checkpoints in the folder of a run: is one whole before it becomes the head, and are all of them still whole?

Both read what a container has written; see `run_files`. Both block.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any

from lorry.errors import CorruptCheckpointError
from lorry.server.run_files import PIECE, RunFiles
from lorry.train.manifest import Chunk, Manifest
from lorry.wire.codec import from_json

MOST_MANIFEST = 64 << 20
"""Bytes: what names 600,000 chunks, 5 TB."""
DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"([0-9]{1,19})-([0-9a-f]{64})\.json")


def check_commit(files: RunFiles, folder: str, run_id: str, token: int, manifest_id: str, step: int) -> None:
    """CorruptCheckpointError unless the manifest is this run's and this attempt's, is what its id says, and all its
    chunks are there in their sizes. Their content is not read: who wrote them has just hashed it, and who restores them
    hashes it again."""
    manifest = _load(files, folder, manifest_id, step)
    told = (manifest.run_id, manifest.token, manifest.step)
    if told != (run_id, token, step):
        raise CorruptCheckpointError(
            f"the manifest {manifest_id} is that of run {told[0]}, attempt {told[1]}, step {told[2]}, and not of "
            f"{run_id}, attempt {token}, step {step}"
        )
    for chunk in manifest.chunks():
        problem = _missing(files, folder, chunk)
        if problem:
            raise CorruptCheckpointError(f"step {step:,} was not committed: {problem}. Save again")


def _load(files: RunFiles, folder: str, manifest_id: str, step: int) -> Manifest:
    name = f"m/{step}-{manifest_id}.json"
    try:
        content = files.read(folder, *name.split("/"), most=MOST_MANIFEST)
    except FileNotFoundError as missing:
        raise CorruptCheckpointError(f"there is no manifest {name}: {missing}") from missing
    if hashlib.sha256(content).hexdigest() != manifest_id:
        raise CorruptCheckpointError(f"{name} is damaged: its content has another digest")
    try:
        return from_json(Manifest, content)
    except (ValueError, TypeError, RecursionError) as wrong:
        raise CorruptCheckpointError(f"{name} is whole, but no manifest: {wrong}") from wrong


def _missing(files: RunFiles, folder: str, chunk: Chunk) -> str:
    """Why a chunk cannot be used; empty if it is there in its size."""
    if not DIGEST.fullmatch(chunk.sha256):
        return f"{chunk.sha256[:80]!r} is no digest"
    name = f"chunks/{chunk.sha256[:2]}/{chunk.sha256}"
    try:
        found = os.stat(files.path(folder) / name, follow_symlinks=False)
    except OSError as problem:
        return f"{name}: {problem.strerror}"
    if not stat.S_ISREG(found.st_mode) or found.st_size != chunk.size:
        return f"{name} has {found.st_size:,} bytes instead of {chunk.size:,}"
    return ""


def described(files: RunFiles, folder: str, manifest_id: str, step: int) -> dict[str, Any]:
    """A committed checkpoint as `run_report.history` has them, by its manifest alone: None is what nobody has noted."""
    row = dict.fromkeys(("created_at", "stall", "persist", "total_bytes", "new_bytes"))
    with contextlib.suppress(CorruptCheckpointError):
        manifest = _load(files, folder, manifest_id, step)
        size = sum(chunk.size for entry in manifest.entries for chunk in entry.chunks)
        row |= {"created_at": manifest.created_at, "stall": manifest.stall_seconds, "total_bytes": size}
    return row | {"step": step, "manifest": manifest_id}


def verify(files: RunFiles, folder: str, wanted: Callable[[], bool] = lambda: True) -> list[dict[str, Any]]:
    """Read and hash all checkpoints, the newest first: {"manifest", "step", "bytes", "damaged": [file…]}. It ends
    early, with what it has, once the answer is not `wanted` any more."""
    found: list[dict[str, Any]] = []
    known: dict[Chunk, bool] = {}
    for step, manifest_id in sorted(_manifests(files, folder), reverse=True):
        row: dict[str, Any] = {"manifest": manifest_id, "step": step, "bytes": 0, "damaged": []}
        try:
            chunks = _load(files, folder, manifest_id, step).chunks()
        except CorruptCheckpointError:
            row["damaged"].append(f"m/{step}-{manifest_id}.json")
            chunks = set()
        for chunk in sorted(chunks, key=lambda chunk: chunk.sha256):
            if not wanted():
                return found
            if chunk not in known:
                known[chunk] = _is_whole(files, folder, chunk)
            row["bytes"] += chunk.size
            if not known[chunk]:
                row["damaged"].append(f"chunks/{chunk.sha256[:2]}/{chunk.sha256}")
        found.append(row)
    return found


def _manifests(files: RunFiles, folder: str) -> Iterator[tuple[int, str]]:
    with contextlib.suppress(OSError):
        for name in os.listdir(files.path(folder) / "m"):
            if match := _NAME.fullmatch(name):
                yield int(match[1]), match[2]


def _is_whole(files: RunFiles, folder: str, chunk: Chunk) -> bool:
    if _missing(files, folder, chunk):
        return False
    digest, place = hashlib.sha256(), 0
    with contextlib.suppress(OSError), files.opened(folder, "chunks", chunk.sha256[:2], chunk.sha256) as descriptor:
        while place < chunk.size and (piece := os.pread(descriptor, min(PIECE, chunk.size - place), place)):
            digest.update(piece)
            place += len(piece)
    return digest.hexdigest() == chunk.sha256
