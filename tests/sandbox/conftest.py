"""Fixtures: a box of each tier, or of the namespaces tier alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_box import Box

from lorry.errors import ResourceError


def make_box(tier: str, base: Path) -> Box:
    try:
        return Box(tier, base)
    except ResourceError as e:
        pytest.skip(str(e))


@pytest.fixture(params=["namespaces", "bwrap", "process"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Box]:
    """Each tier in turn."""
    box = make_box(request.param, tmp_path)
    yield box
    box.kill_all()


@pytest.fixture(params=["namespaces", "bwrap"])
def confined(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Box]:
    """Each tier that isolates."""
    box = make_box(request.param, tmp_path)
    yield box
    box.kill_all()


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[Box]:
    """The namespaces tier alone."""
    box = make_box("namespaces", tmp_path)
    yield box
    box.kill_all()
