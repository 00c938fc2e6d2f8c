"""Programs import public names from modules as well as from the package: `from lorry.volume import Volume`."""

from __future__ import annotations

import importlib

import pytest

import lorry


@pytest.mark.parametrize("module", ["app", "cls", "functions", "image", "secret", "volume"])
def test_a_public_module_gives_the_names_of_the_package(module: str) -> None:
    public = importlib.import_module(f"lorry.{module}")
    assert public.__all__
    for name in public.__all__:
        assert getattr(public, name) is getattr(lorry, name, getattr(public, name))
    assert any(hasattr(lorry, name) for name in public.__all__)
