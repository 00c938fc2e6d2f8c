"""Files of the user's machine that an image shows: found when the app starts, not before."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath

from lorry.errors import InvalidError
from lorry.sdk.file_pattern_matcher import FilePatternMatcher

PYTHON_ROOT = PurePosixPath("/root")
"""Where modules are put; it is on the container's import path."""

Ignore = Callable[[Path], bool]
Placed = tuple[str, Path]
"""Path in the container, file here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedFile:
    local: str
    remote: str

    def files(self) -> Iterator[Placed]:
        path = Path(self.local).expanduser()
        if path.is_dir():
            raise InvalidError(f"add_local_file: {self.local!r} is a folder. Use add_local_dir.")
        if not path.is_file():
            raise InvalidError(f"add_local_file: there is no file {_shown(path)}.")
        yield self.remote + path.name if self.remote.endswith("/") else self.remote, path


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedDir:
    local: str
    remote: str
    ignore: Ignore

    def files(self) -> Iterator[Placed]:
        root = Path(self.local).expanduser()
        if root.is_file():
            raise InvalidError(f"add_local_dir: {self.local!r} is a file. Use add_local_file.")
        if not root.is_dir():
            raise InvalidError(f"add_local_dir: there is no folder {_shown(root)}.")
        for relative in walk(root, self.ignore):
            yield str(PurePosixPath(self.remote) / relative.as_posix()), root / relative


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedModule:
    module: str
    ignore: Ignore

    def files(self) -> Iterator[Placed]:
        spec = self._find()
        target = PYTHON_ROOT.joinpath(*self.module.split("."))
        if spec.submodule_search_locations:
            for folder in map(Path, spec.submodule_search_locations):
                for relative in walk(folder, self.ignore):
                    if "__pycache__" not in relative.parts:
                        yield str(target / relative.as_posix()), folder / relative
        else:
            assert spec.origin is not None
            yield str(target.parent / os.path.basename(spec.origin)), Path(spec.origin)

    def _find(self) -> ModuleSpec:
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError) as error:
            raise InvalidError(f"add_local_python_source: {self.module!r} cannot be found: {error}.") from error
        if spec is None:
            raise InvalidError(
                f"add_local_python_source: no module named {self.module!r} can be imported here. It takes "
                "module names ('mylib'), not paths; is the folder that holds it on sys.path?"
            )
        if not spec.submodule_search_locations and not (spec.has_location and spec.origin):
            raise InvalidError(f"add_local_python_source: {self.module!r} is built into Python, it has no file.")
        return spec


def walk(root: Path, ignore: Ignore) -> Iterator[Path]:
    """Relative paths of the files below `root`, sorted. Links to folders are followed, each folder once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder).relative_to(root)
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(
            name
            for name in folders
            if os.path.realpath(os.path.join(folder, name)) not in seen and not _covered(ignore, here / name)
        )
        for name in sorted(names):
            # A dangling link or a socket is no file to ship, and no reason to fail either.
            if os.path.isfile(os.path.join(folder, name)) and not ignore(here / name):
                yield here / name


def _covered(ignore: Ignore, folder: Path) -> bool:
    return isinstance(ignore, FilePatternMatcher) and ignore.covers_folder(folder)


def _shown(path: Path) -> str:
    return f"{str(path)!r}" + ("" if path.is_absolute() else f" in {os.getcwd()}")
