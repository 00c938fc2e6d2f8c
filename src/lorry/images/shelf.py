"""Images on disk.

    images/<digest>.json           written last, atomically: without it there is no image
    logs/<digest>.log              the build's log, also of a failed one
    locks/<digest>
    recipes/<digest>.<attempt>/    requirements files while a build runs
    uv/                            all that a build writes to; one mount, since hard links cannot cross
        cache/  home/  roots/  (the last is the layers' own)
        <digest>.<attempt>/        a virtual environment

An environment holds its own absolute path (pyvenv.cfg, `#!` lines, compiled code), so it is never moved: each
attempt is made in a folder of its own, where it stays. A builder that is killed leaves a folder that no json
names; even if a uv process outlives it and goes on writing there, nobody ever reads it, and it is swept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorry.images.disk import remove_tree, replace_durably
from lorry.images.lock import if_free


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    digest: str
    folder: str
    """Name of the environment's folder under `uv/`."""
    base_prefix: str
    packages: Mapping[str, str]
    """Name to version, or to the url that it came from."""
    size: int
    """Bytes on disk, files shared with uv's cache and with other images included."""
    created: float
    build_seconds: float
    last_used: float = 0.0
    layers: Sequence[str] = ()
    """Digests, lowest first, of an image with a root file system of its own; `folder` and `base_prefix` are empty."""
    python: str = ""
    """Path of its Python in such an image."""
    env: Mapping[str, str] = field(default_factory=dict)
    """What such an image says about its environment."""
    workdir: str = ""


class Shelf:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"
        self.logs = root / "logs"
        self.locks = root / "locks"
        self.recipes = root / "recipes"
        self.uv = root / "uv"
        self.cache = self.uv / "cache"
        self.home = self.uv / "home"

    def prepare(self) -> None:
        for folder in (self.images, self.logs, self.locks, self.recipes, self.uv):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)

    def environment(self, image: StoredImage) -> Path:
        return self.uv / image.folder

    def lock(self, digest: str) -> Path:
        return self.locks / digest

    def find(self, digest: str) -> StoredImage | None:
        """The finished image, None if there is none or its environment was deleted by hand."""
        path = self._manifest(digest)
        try:
            content, used = path.read_text(encoding="utf-8"), path.stat().st_mtime
        except FileNotFoundError:
            return None
        image = StoredImage(**{**json.loads(content), "last_used": used})
        if image.layers:
            return image if all((self.root / "layers" / layer).is_dir() for layer in image.layers) else None
        return image if (self.uv / image.folder / "bin" / "python").exists() else None

    def find_all(self) -> list[StoredImage]:
        """In order of digest."""
        found = (self.find(path.stem) for path in sorted(self.images.glob("*.json")))
        return [image for image in found if image is not None]

    def publish(self, image: StoredImage) -> None:
        facts = asdict(image)
        del facts["last_used"]
        path = self._manifest(image.digest)
        replace_durably(path, json.dumps(facts, indent=1, sort_keys=True).encode())
        self.touch(image.digest, image.created)

    def touch(self, digest: str, now: float) -> None:
        """The json's modification time is when the image was last asked for."""
        os.utime(self._manifest(digest), (now, now))

    def new_attempt(self, digest: str, attempt: str) -> str:
        """The folder's name. The environment itself is made by uv, the recipe folder here."""
        name = f"{digest}.{attempt}"
        (self.recipes / name).mkdir()
        return name

    def drop_attempt(self, name: str) -> None:
        remove_tree(self.uv / name)
        remove_tree(self.recipes / name)

    def drop_recipe(self, name: str) -> None:
        remove_tree(self.recipes / name)

    def drop_image(self, image: StoredImage) -> None:
        """The json first: from then on the image does not exist, wherever this stops."""
        self._manifest(image.digest).unlink(missing_ok=True)
        if image.folder:
            self.drop_attempt(image.folder)
        (self.logs / f"{image.digest}.log").unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what killed builders left. A digest that somebody is building is locked, and left alone."""
        for digest in {name.partition(".")[0] for name in self._attempts()}:
            with if_free(self.lock(digest)) as free:
                if free:
                    self.sweep_digest(digest)
        for path in self.images.glob("*.tmp"):
            with if_free(self.lock(path.name.partition(".")[0])) as free:
                if free:
                    path.unlink(missing_ok=True)

    def sweep_digest(self, digest: str) -> None:
        """The caller holds the digest's lock."""
        image = self.find(digest)
        for name in self._attempts():
            if name.startswith(digest + ".") and (image is None or name != image.folder):
                self.drop_attempt(name)
        if image is not None and image.folder:
            self.drop_recipe(image.folder)

    def drop_old_logs(self, before: float) -> None:
        for path in self.logs.glob("*.log"):
            if not self._manifest(path.stem).exists() and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    def _attempts(self) -> Iterator[str]:
        names = {entry.name for folder in (self.uv, self.recipes) for entry in folder.iterdir()}
        yield from sorted(name for name in names if "." in name)

    def _manifest(self, digest: str) -> Path:
        return self.images / f"{digest}.json"
