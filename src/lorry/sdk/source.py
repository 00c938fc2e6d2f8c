"""What is shipped: a content-addressed snapshot of the user's own code.

The entry file, or the package that it belongs to, and every module that it has imported from the project: files
below the source root that are no part of an installed package. Paths are kept relative to that root, which is
/root in a container.
"""

from __future__ import annotations

import hashlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from lorry.errors import InvalidError

INNER_ROOT = "/root"
MAX_FILE = 32 << 20
"""A source file above this is data: it is named in an error, not shipped by accident."""
_local_root: list[str] = []


@dataclass(slots=True)
class Snapshot:
    """Files by their path in the container, relative to the source root."""

    root: Path
    files: dict[str, Path] = field(default_factory=dict)

    def manifest(self) -> list[tuple[str, str, int]]:
        """(path, SHA-256, mode), sorted: equal content gives an equal manifest."""
        rows = []
        for name, path in sorted(self.files.items()):
            data = path.read_bytes()
            rows.append((name, hashlib.sha256(data).hexdigest(), 0o755 if os.access(path, os.X_OK) else 0o644))
        return rows


def take(entry: ModuleType | None) -> Snapshot:
    """The snapshot of the program that `entry` is the first file of. Without a file (REPL, notebook): empty."""
    file = file_of(entry)
    root = source_root(entry) if file else Path.cwd()
    _local_root[:] = [str(root)]
    snapshot = Snapshot(root)
    if file:
        _add(snapshot, Path(file).resolve())
    for module in list(sys.modules.values()):
        for path in _module_files(module):
            inside = path if path.is_relative_to(root) else path.resolve()
            if inside.is_relative_to(root) and not _installed(path) and not _installed(path.resolve()):
                _add(snapshot, inside)
    return snapshot


def file_of(module: ModuleType | None) -> str | None:
    """The file that a module came from. None for a notebook, a REPL, and for a program that was piped into Python,
    which calls its file `<stdin>`."""
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) and os.path.isfile(file) else None


def source_root(entry: ModuleType | None) -> Path:
    """The folder that imports of the user's code start from: that of the entry file, or above its package."""
    file = file_of(entry)
    if file is None:
        return Path.cwd()
    folder = Path(file).resolve().parent
    package = getattr(entry, "__package__", None) or ""
    for _ in filter(None, package.split(".")):
        folder = folder.parent
    return folder


def relative_entry(entry: ModuleType) -> str | None:
    """Path of the entry file below the source root."""
    file = file_of(entry)
    return None if file is None else str(Path(file).resolve().relative_to(source_root(entry)))


def local_path(file: str) -> str:
    """Where a file of a container lies on this machine, for tracebacks."""
    if _local_root and file.startswith(INNER_ROOT + "/"):
        candidate = os.path.join(_local_root[0], file[len(INNER_ROOT) + 1 :])
        if os.path.exists(candidate):
            return candidate
    elif _local_root and "/trees/" in file:  # the process tier runs the snapshot where it lies
        candidate = os.path.join(_local_root[0], file.split("/trees/", 1)[1].partition("/")[2])
        if os.path.exists(candidate):
            return candidate
    return file


def _module_files(module: ModuleType) -> Iterator[Path]:
    """The module's own file; for a package all its Python files: some are imported only in the container."""
    # Not getattr: lazy modules import something, or raise anything, when they are asked.
    file = getattr(module, "__dict__", {}).get("__file__")
    if not isinstance(file, str) or not file.endswith(".py"):
        return
    path = Path(os.path.abspath(file))  # a link below the root keeps its own name, as imports know it
    if not path.is_file():  # deleted since it was imported, or inside an archive
        return
    if path.name == "__init__.py" and not _installed(path):
        yield from (found for found in path.parent.rglob("*.py") if found.is_file())
    yield path


def _installed_roots() -> tuple[Path, ...]:
    names = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    names |= {site.getusersitepackages(), *site.getsitepackages(), sys.prefix}
    lorry = Path(__file__).resolve().parent.parent
    return (*(Path(name).resolve() for name in names if name), lorry)


_roots: tuple[Path, ...] = ()


def _installed(path: Path) -> bool:
    """Part of Python, of an installed package, of this virtual environment or of Lorry itself."""
    global _roots
    _roots = _roots or _installed_roots()
    return "site-packages" in path.parts or any(path.is_relative_to(root) for root in _roots)


def _add(snapshot: Snapshot, path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_FILE:
        raise InvalidError(
            f"{path} has {size >> 20} MiB, more than the {MAX_FILE >> 20} MiB that a source file may have; "
            "put data into a Volume"
        )
    snapshot.files[str(path.relative_to(snapshot.root))] = path
