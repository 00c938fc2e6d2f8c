"""`lorry.run()`, and where runs live: in a folder of this machine, or, in a resumable function, in the platform's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorry.errors import AlreadyExistsError, InvalidError
from lorry.runtime import slice as slices
from lorry.runtime.slice import Slice
from lorry.storage.atomic import make_folder
from lorry.train.lock import FolderLock
from lorry.train.options import options
from lorry.train.run import Run
from lorry.train.slices import SliceEnd
from lorry.train.store import CheckpointStore
from lorry.wire import identity

if TYPE_CHECKING:
    from lorry.train.server_heads import ServerHeads

Folder = str | os.PathLike[str] | None


def run(
    folder: Folder = None,
    *,
    every: str | int | None = None,
    keep_last: int | None = None,
    keep_every: str | None = None,
    rng: Literal["state", "counter"] = "state",
    seed: int = 0,
) -> Run:
    """The training run of this script; started again, it is the same run. In a resumable function: that of its input.

    `folder`: default LORRY_RUN_DIR, or ./lorry-runs/<name of the script>. `every`: how often to save; "auto" works
    it out from what a checkpoint costs and how often training was interrupted; otherwise steps (200) or a time ("5m").
    `keep_last` checkpoints (2) are kept, and of each `keep_every` ("1h") the first. What is not given here is as
    `lorry.Resumable` says. `rng="counter"` starts the shared random generators afresh before each step, from `seed` and
    the step, instead of saving their state.

    AlreadyExistsError if another process trains in the folder. InvalidError in a container whose function is not
    resumable: what it wrote would go with it.
    """
    slice = slice_of_this_function(folder)
    chosen = options(
        every=every,
        keep_last=keep_last,
        keep_every=keep_every,
        rng=rng,
        seed=seed,
        policy=slice.policy if slice else None,
    )
    if slice is not None:
        platform, heads = of_the_platform()
        return Run(platform, heads.folder, chosen, ending=SliceEnd(slice), past=heads.past)
    store, place, release = on_this_machine(folder)
    try:
        return Run(store, place, chosen, release=release)
    except BaseException:
        release()
        raise


def slice_of_this_function(folder: Folder) -> Slice | None:
    """The slice that this code runs in; None for a run in a folder of this machine. InvalidError if it is neither."""
    if slices.current is not None:
        if folder:
            raise InvalidError(
                f"lorry.run({str(folder)!r}) in a resumable function: Lorry keeps its run, so leave the folder out"
            )
        if slices.current.active:
            raise AlreadyExistsError("This function has its run already: call lorry.run() once, and pass it on")
        return slices.current
    if identity.container is not None and not (folder or os.environ.get("LORRY_RUN_DIR")):
        raise InvalidError(
            "lorry.run() in a container whose function is not resumable: what it saves would go with the container. "
            "Declare @app.function(resumable=True), or give a folder on a Volume: lorry.run(folder=…)"
        )
    return None


def of_the_platform() -> tuple[CheckpointStore, ServerHeads]:
    """An attempt begins at the run of this container's input."""
    from lorry.train.folder_store import FolderStore
    from lorry.train.server_heads import OneConnection, ServerHeads

    heads = ServerHeads(OneConnection())
    return FolderStore(heads.folder, heads), heads


def on_this_machine(folder: Folder) -> tuple[CheckpointStore, Path, Callable[[], None]]:
    """Its store, its folder, and what to call when the run is over. AlreadyExistsError: somebody trains there."""
    from lorry.train.local_store import LocalStore

    place = Path(folder or os.environ.get("LORRY_RUN_DIR") or Path("lorry-runs", _script_name())).absolute()
    lock = FolderLock(make_folder(place))
    lock.acquire()
    return LocalStore(place), place, lock.release


def _script_name() -> str:
    return Path(sys.argv[0] if sys.argv else "").stem.strip("-") or "interactive"
