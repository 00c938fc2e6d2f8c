"""Layers on disk: folders named by what made them, kept until no image needs them.

layers/<digest>/                 what the step wrote, as overlayfs leaves it; never changed again
layers/<digest>.json             written last: without it there is no layer
layers/<digest>.<attempt>/       upper/ and work/ of a build under way
locks/<digest>                   one builder per layer
locks/collect                    shared by builders, exclusive for whoever removes layers
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from lorry.images.disk import remove_tree, replace_durably
from lorry.images.lock import if_free, shared


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    digest: str
    title: str
    size: int
    """Bytes on disk."""
    files: int
    created: float
    build_seconds: float


class LayerStore:
    def __init__(self, root: Path, remove: Callable[[Path], Awaitable[None]]) -> None:
        """`remove`: deletes a folder whose files may belong to other users."""
        self.cache = root / "uv" / "roots"
        """uv's, for packages that were installed into roots: what it compiled there fits no other system."""
        self._folder = root / "layers"
        self._locks = root / "locks"
        self._remove = remove

    def prepare(self) -> None:
        for folder in (self._folder, self._locks, self.cache):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        return self._folder / digest

    def lock(self, digest: str) -> Path:
        return self._locks / digest

    def in_use(self) -> AbstractAsyncContextManager[None]:
        """Nothing is collected inside the block, by any process. It lasts until an image names the layers."""
        return shared(self._locks / "collect")

    def find(self, digest: str) -> StoredLayer | None:
        try:
            layer = StoredLayer(**json.loads(self._manifest(digest).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        return layer if self.path(digest).is_dir() else None

    def find_all(self) -> list[StoredLayer]:
        found = (self.find(path.stem) for path in sorted(self._folder.glob("*.json")))
        return [layer for layer in found if layer is not None]

    def new_attempt(self, digest: str, attempt: str) -> Path:
        folder = self._folder / f"{digest}.{attempt}"
        folder.mkdir()
        for name in ("upper", "work"):
            (folder / name).mkdir()
        return folder

    async def publish(self, layer: StoredLayer, attempt: Path) -> None:
        """The caller holds the layer's lock, and everything in it is on disk."""
        if self.path(layer.digest).exists():  # of a builder that died between the two
            await self._remove(self.path(layer.digest))
        (attempt / "upper").rename(self.path(layer.digest))
        content = json.dumps(asdict(layer), indent=1, sort_keys=True).encode()
        replace_durably(self._manifest(layer.digest), content)

    async def drop_attempts(self, digest: str) -> None:
        """The caller holds the layer's lock."""
        for path in self._folder.glob(f"{digest}.*"):
            if path.suffix != ".json":
                await self._remove(path)

    async def sweep(self) -> None:
        """Removes what killed builders left: attempts, and folders that no json names."""
        digests = {path.name.partition(".")[0] for path in self._folder.iterdir()}
        for digest in sorted(digests):
            with if_free(self.lock(digest)) as free:
                if free:
                    await self.drop_attempts(digest)
                    if self.path(digest).exists() and not self._manifest(digest).exists():
                        await self._remove(self.path(digest))

    async def collect(self, needed: Callable[[], set[str]], before: float) -> None:
        """Removes layers that are not `needed` and older than `before`, unless somebody builds just now.

        `needed` is asked when nobody can build any more: an image that was finished a moment ago counts.
        """
        with if_free(self._locks / "collect") as free:
            if not free:
                return
            kept = needed()
            gone = [layer for layer in self.find_all() if layer.digest not in kept and layer.created < before]
            for layer in gone:
                self._manifest(layer.digest).unlink(missing_ok=True)
                await self._remove(self.path(layer.digest))
            if gone:
                await self._remove(self.cache)

    def _manifest(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"


def settle(folder: Path) -> tuple[int, int]:
    """Takes set-user-id and set-group-id bits off a finished layer; (bytes on disk, files).

    A folder that this user may not enter (an ordinary user's build gives some to other ids) is passed over.
    """
    size = files = 0
    for where, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(where, name)
            status = os.lstat(path)
            size += status.st_blocks * 512
            files += 1
            if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
                _drop_bits(path, status.st_mode)
    return size, files


def _drop_bits(path: str, mode: int) -> None:
    try:
        os.chmod(path, stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))
    except PermissionError:
        return


def remove_own(folder: Path) -> bool:
    """Deletes as far as this process may; whether all of it is gone."""
    remove_tree(folder)
    return not folder.exists()
