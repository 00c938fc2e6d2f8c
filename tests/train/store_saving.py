"""Small checkpoints for tests of the store; as a program, an attempt that goes on from the newest one.

store_saving.py FOLDER LAST_STEP [BYTES]   dies after it has written BYTES, in the middle of a write
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from lorry.train import files
from lorry.train.local_store import LocalStore
from lorry.train.manifest import BLOB, Chunk, Entry, Head, Manifest
from lorry.train.store import resolve

FROZEN = b"frozen" * 50


def state_at(step: int) -> list[bytes]:
    """One piece that never changes and two that do."""
    return [FROZEN, b"weights %d " % step * 40, b"moments %d " % step * 40]


def staged(store: LocalStore, step: int, token: int, parent: str | None = None, pieces: Any = None) -> Manifest:
    """Bytes in the store, and the manifest to commit."""
    entries = tuple(
        Entry(name=f"e{n}", dtype=BLOB, shape=(len(piece),), chunks=(store.put(memoryview(piece))[0],))
        for n, piece in enumerate(pieces or state_at(step))
    )
    return Manifest(
        run_id="run",
        step=step,
        token=token,
        parent=parent,
        entries=entries,
        structure={entry.name: {"$entry": entry.name} for entry in entries},
        fingerprint={"python": "3"},
        created_at=1.0,
        stall_seconds=0.0,
    )


def saved(store: LocalStore, step: int, token: int, parent: str | None = None, pieces: Any = None) -> Head:
    return store.commit(staged(store, step, token, parent, pieces))


def content(store: LocalStore, chunk: Chunk) -> bytes:
    memory = bytearray(chunk.size)
    store.read(chunk, memoryview(memory))
    return bytes(memory)


def contents(store: LocalStore, manifest: Manifest) -> list[bytes]:
    return [content(store, chunk) for entry in manifest.entries for chunk in entry.chunks]


def attempt(folder: Path, last_step: int) -> None:
    store = LocalStore(folder)
    token = store.begin()
    print("begun", token, flush=True)
    newest = resolve(store)
    if newest is not None:
        assert contents(store, newest) == state_at(newest.step)
    step, parent = (newest.step, newest.id) if newest else (0, None)
    while step < last_step:
        step += 1
        parent = saved(store, step, token, parent).manifest
        print(step, flush=True)


def die_after(count: int) -> None:
    """SIGKILL in the write that would pass so many bytes, after its part of them."""
    left = count
    write = os.write

    def write_some(descriptor: int, data: Any) -> int:
        nonlocal left
        if left < len(data):
            write(descriptor, data[:left])
            os.kill(os.getpid(), signal.SIGKILL)
        left -= len(data)
        return write(descriptor, data)

    files.os = type("os", (), {**vars(os), "write": staticmethod(write_some)})  # type: ignore[attr-defined]


if __name__ == "__main__":
    if len(sys.argv) > 3:
        die_after(int(sys.argv[3]))
    attempt(Path(sys.argv[1]), int(sys.argv[2]))
