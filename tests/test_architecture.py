"""The structure of the code, held: layers point one way, no cycles, no file and no function grows too long."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorry

ROOT = Path(lorry.__file__).parent
LAYERS: dict[str, int] = {
    "errors": 0,
    "clock": 0,
    "ids": 0,
    "faults": 0,
    "model": 0,
    "config": 1,
    "timeouts": 1,
    "wire": 1,
    "lifecycle": 2,
    "scheduler": 2,
    "store": 3,
    "storage": 3,
    "images": 3,
    "sandbox": 4,
    "runtime": 4,
    "sdk": 4,
    "train": 5,
    "serve": 5,
    "plan": 5,
    "security": 5,
    "server": 6,
    "cli": 7,
    "testing": 7,
}
"""DESIGN.md, section 4. A package imports only from its own layer and those above it in this table."""
FORBIDDEN = {"sdk": {"store", "scheduler", "runtime", "server", "sandbox"}, "runtime": {"server", "store", "sandbox"}}
"""Within or below their layer, and still not allowed."""
ALLOWED = {
    ("lorry.sdk.context", "lorry.runtime.output"): "asks which call runs, inside a container only",
    ("lorry.runtime.template", "lorry.sandbox.fork"): "a fork makes its own walls, from the inside",
}
PUBLIC = {"lorry", *(f"lorry.{name}" for name in lorry._SUBMODULES)}
"""Facades: they may name any layer."""
MAX_FILE = 600
MAX_FUNCTION = 60
EXEMPT: dict[str, str] = {}
"""path or path:function → reason"""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT.parent)
        if "_vendor" in relative.parts:
            continue
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports(path: Path, *, lazy: bool) -> set[str]:
    """Modules of lorry that a file imports; without `lazy`, only at import time."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            function = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            if isinstance(child, ast.Import) and (lazy or not function):
                found.update(alias.name for alias in child.names if alias.name.startswith("lorry"))
            elif (
                isinstance(child, ast.ImportFrom)
                and (lazy or not function)
                and (child.module or "").startswith("lorry")
            ):
                found.update(_targets(child))
            visit(child, function)

    visit(tree, False)
    return found


def _targets(node: ast.ImportFrom) -> Iterator[str]:
    assert node.module is not None
    for alias in node.names:
        candidate = f"{node.module}.{alias.name}"
        folder = ROOT.parent / Path(*candidate.split("."))
        yield candidate if folder.is_dir() or folder.with_suffix(".py").exists() else node.module


def package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_module_has_a_layer() -> None:
    homeless = {name for name, _ in modules() if package(name) not in LAYERS} - PUBLIC
    assert not homeless


def test_imports_point_one_way() -> None:
    wrong = []
    for name, path in modules():
        if name in PUBLIC:
            continue
        for target in imports(path, lazy=True):
            if target in PUBLIC or package(target) in ("", "_vendor") or (name, target) in ALLOWED:
                continue
            mine, theirs = package(name), package(target)
            if LAYERS[theirs] > LAYERS[mine] or theirs in FORBIDDEN.get(mine, ()):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_no_module_is_in_an_import_cycle() -> None:
    graph = {name: imports(path, lazy=False) for name, path in modules()}
    done: set[str] = set()
    path_here: list[str] = []

    def visit(name: str) -> None:
        assert name not in path_here, " → ".join([*path_here[path_here.index(name) :], name])
        if name in done or name not in graph or name == "lorry":
            return
        path_here.append(name)
        for target in sorted(graph[name]):
            visit(target)
        path_here.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_files_and_functions_stay_short() -> None:
    long = []
    for _, path in modules():
        relative = str(path.relative_to(ROOT))
        lines = path.read_text().splitlines()
        if len(lines) > MAX_FILE and relative not in EXEMPT:
            long.append(f"{relative}: {len(lines)} lines")
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION and f"{relative}:{node.name}" not in EXEMPT:
                    long.append(f"{relative}:{node.name}: {length} lines")
    assert not long


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not [name for name, _ in modules() if name.rpartition(".")[2] in empty]


INSIDE = ["lorry.runtime.main", "lorry.runtime.sync_runner", "lorry.runtime.async_runner", "lorry.runtime.load"]


@pytest.mark.parametrize(
    "module", [*INSIDE, "lorry", "lorry.data", "lorry.sdk.app", "lorry.sdk.function", "lorry.sdk.volume"]
)
def test_what_runs_in_containers_needs_only_the_standard_library(module: str) -> None:
    """An image has nothing of Lorry, and maybe nothing at all."""
    program = f"import sys; sys.path.append({str(ROOT.parent)!r}); import {module}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_lorry_imports_no_asyncio_and_nothing_of_the_server() -> None:
    program = "import sys, lorry; lorry.App; lorry.Function; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"asyncio", "uvloop", "apsw", "typer", "rich", "cryptography", "numpy", "torch"}
    assert not heavy & set(loaded)
    assert not [name for name in loaded if name.startswith(("lorry.server", "lorry.store", "lorry.scheduler"))]


def test_pickle_lives_in_one_file_and_the_server_never_unpickles() -> None:
    """Promise 4. `cls.py` writes (never reads) the parameters of a class: text, numbers and bytes only."""
    users = {
        str(path.relative_to(ROOT))
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and "pickle" in {alias.name for alias in node.names} | {getattr(node, "module", None)}
    }
    assert users <= {"wire/pickling.py", "sdk/cls.py"}
    for _, path in modules():
        if package(_) in ("server", "store", "storage", "scheduler", "images", "sandbox"):
            assert "wire import pickling" not in path.read_text()
            assert "wire.pickling" not in path.read_text()


def test_the_public_names_are_these() -> None:
    assert set(lorry.__all__) == set(lorry._HOMES) | {"data", "exception", "weights"}
    for name in lorry.__all__:
        assert getattr(lorry, name) is not None
