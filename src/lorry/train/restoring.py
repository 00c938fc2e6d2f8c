"""Finding the newest checkpoint that is whole, and that fits what is tracked. Nothing is changed here."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorry.errors import CorruptCheckpointError, InvalidError
from lorry.train.capture import Reader, on_its_device
from lorry.train.manifest import Manifest
from lorry.train.store import CheckpointStore
from lorry.train.structure import rebuild
from lorry.train.tracked import Tracked


def load_newest(
    store: CheckpointStore, tracked: Mapping[str, Tracked], folder: Path
) -> tuple[Manifest, dict[str, Any]] | None:
    """With all of its state, verified. None if there is no checkpoint; CorruptCheckpointError if none is whole."""
    broken: CorruptCheckpointError | None = None
    for manifest_id in store.history():
        try:
            manifest = store.manifest(manifest_id)
            _check_names(manifest, tracked, folder)
            state = _read(store, manifest, tracked)
        except CorruptCheckpointError as error:
            broken = broken or error
            continue
        if broken is not None:
            warnings.warn(
                f"The newest checkpoint is damaged ({broken}). Going on from step {manifest.step:,}", stacklevel=3
            )
        return manifest, state
    if broken is not None:
        raise CorruptCheckpointError(f"No checkpoint is whole. The newest: {broken}") from broken
    return None


def _check_names(manifest: Manifest, tracked: Collection[str], folder: Path) -> None:
    names = {name for name in manifest.structure if "." not in name}
    missing, unknown = sorted(names - set(tracked)), sorted(set(tracked) - names)
    if missing or unknown:
        raise InvalidError(
            f"The checkpoint at step {manifest.step:,} does not fit what is tracked. In it and not tracked: "
            f"{', '.join(missing) or 'nothing'}. Tracked and not in it: {', '.join(unknown) or 'nothing'}. Track the "
            f"same names, or start anew in another folder (this is {folder})"
        )


def _read(store: CheckpointStore, manifest: Manifest, tracked: Mapping[str, Tracked]) -> dict[str, Any]:
    leaf = Reader(store, manifest).leaf
    placed = on_its_device(leaf)
    return {
        name: rebuild(tree, placed if name in tracked and tracked[name].plain else leaf)
        for name, tree in manifest.structure.items()
    }
