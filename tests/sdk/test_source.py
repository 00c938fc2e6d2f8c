"""What is shipped: the program's own modules under the names that imports use, and nothing installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorry.errors import InvalidError
from lorry.sdk import source

PROBE = """
import json, sys
from lorry.sdk import source
entry = sys.modules["__main__"]
print(json.dumps([sorted(source.take(entry).files), source.relative_entry(entry)]))
"""


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("DOT", ".").replace("INIT", "__init__")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def shipped(folder: Path, *arguments: str) -> tuple[list[str], str]:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    files, entry = json.loads(done.stdout.splitlines()[-1])
    return files, entry


def test_a_script_ships_itself_and_what_it_imports_beside_it(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import helper, json\n" + PROBE)
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "data.bin").write_bytes(b"x")
    assert shipped(tmp_path, "main.py") == (["helper.py", "main.py"], "main.py")
    assert shipped(Path("/"), str(tmp_path / "main.py"))[0] == ["helper.py", "main.py"]


def test_a_package_is_shipped_with_all_its_modules(tmp_path: Path) -> None:
    package = tmp_path / "pkg" / "deep"
    package.mkdir(parents=True)
    for path in (tmp_path / "pkg" / "__init__.py", package / "__init__.py", package / "late.py"):
        path.write_text("")
    (tmp_path / "main.py").write_text("import pkg\n" + PROBE)
    files, _ = shipped(tmp_path, "main.py")
    assert files == ["main.py", "pkg/__init__.py", "pkg/deep/__init__.py", "pkg/deep/late.py"]


def test_a_module_run_with_m_keeps_its_place_below_the_root(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tool.py").write_text("from pkg import other\n" + PROBE)
    (package / "other.py").write_text("")
    (tmp_path / "beside.py").write_text("")
    files, entry = shipped(tmp_path, "-m", "pkg.tool")
    assert files == ["pkg/__init__.py", "pkg/other.py", "pkg/tool.py"]
    assert entry == "pkg/tool.py"


def test_linked_modules_are_shipped_under_their_own_name(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    project = tmp_path / "project"
    shared.mkdir()
    project.mkdir()
    (shared / "real.py").write_text("")
    (shared / "lib").mkdir()
    (shared / "lib" / "__init__.py").write_text("")
    (project / "linked.py").symlink_to(shared / "real.py")
    (project / "lib").symlink_to(shared / "lib")
    (project / "main.py").write_text("import linked, lib\n" + PROBE)
    assert shipped(project, "main.py")[0] == ["lib/__init__.py", "linked.py", "main.py"]


def test_a_project_reached_through_a_link_is_the_same_project(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "main.py").write_text("import helper\n" + PROBE)
    (project / "helper.py").write_text("")
    (tmp_path / "link").symlink_to(project)
    assert shipped(tmp_path, "link/main.py")[0] == ["helper.py", "main.py"]


def test_an_environment_inside_the_project_is_not_shipped(tmp_path: Path) -> None:
    installed = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages" / "dependency"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    (tmp_path / "main.py").write_text(
        f"import sys; sys.path.insert(0, {str(installed.parent)!r}); import dependency\n" + PROBE
    )
    assert shipped(tmp_path, "main.py")[0] == ["main.py"]


def test_modules_that_are_gone_or_odd_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text("")
    (tmp_path / "main.py").write_text(
        "import gone, os, sys, types; os.unlink(gone.__file__)\n"
        "class Lazy(types.ModuleType):\n"
        "    def __getattr__(self, name): raise ImportError(name)\n"
        "sys.modules['lazy'] = Lazy('lazy'); sys.modules['none'] = None; sys.modules['odd'] = 5\n" + PROBE
    )
    assert shipped(tmp_path, "main.py")[0] == ["main.py"]


def test_without_a_file_nothing_of_the_program_itself_is_shipped(tmp_path: Path) -> None:
    assert shipped(tmp_path, "-c", PROBE) == ([], None)


def test_equal_content_gives_an_equal_manifest_and_the_mode_counts(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("1")
    (tmp_path / "b.py").chmod(0o755)
    files = {"b.py": tmp_path / "b.py", "a.py": tmp_path / "a.py"}
    rows = source.Snapshot(tmp_path, files).manifest()
    assert [(name, mode) for name, _, mode in rows] == [("a.py", 0o644), ("b.py", 0o755)]
    assert rows[0][1] == rows[1][1]


def test_a_huge_source_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FILE", 10)
    (tmp_path / "big.py").write_text("x = 1  # " + "y" * 100)
    with pytest.raises(InvalidError, match=r"big\.py.*Volume"):
        source._add(source.Snapshot(tmp_path), tmp_path / "big.py")


def test_paths_of_a_container_are_mapped_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_local_root", [str(tmp_path)])
    (tmp_path / "m.py").write_text("")
    assert source.local_path("/root/m.py") == str(tmp_path / "m.py")
    assert source.local_path("/state/trees/abc/m.py") == str(tmp_path / "m.py")
    assert source.local_path("/root/missing.py") == "/root/missing.py"
    assert source.local_path("/usr/lib/x.py") == "/usr/lib/x.py"
