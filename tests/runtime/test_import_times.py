"""Imports are counted for the package that the user's module named, with all that it imports itself."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest

from lorry.runtime import import_times
from lorry.runtime.import_times import ImportTimes


def test_the_outermost_package_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(import_times, "SHORTEST", 0.0)
    (tmp_path / "outer_package.py").write_text("import inner_package\n")
    (tmp_path / "inner_package.py").write_text("")
    before = builtins.__import__
    with ImportTimes() as times:
        import sys as _known  # noqa: F401

        import outer_package  # type: ignore[import-not-found]  # noqa: F401
    assert builtins.__import__ is before
    assert [name for name, _ in times.slowest()] == ["outer_package"]
    assert "inner_package" in sys.modules


def test_a_failing_import_leaves_the_builtin_as_it_was() -> None:
    before = builtins.__import__
    with pytest.raises(ModuleNotFoundError), ImportTimes():
        import no_such_package_at_all  # type: ignore[import-not-found]  # noqa: F401
    assert builtins.__import__ is before
