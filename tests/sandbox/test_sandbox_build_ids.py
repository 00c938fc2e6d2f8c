"""Which ids an image build may have, and what is said where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorry.sandbox import build_ids as ids


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/etc/subuid and /etc/subgid of a user joe."""
    real = ids._ranges
    monkeypatch.setattr(ids, "_ranges", lambda table: real(tmp_path / table.name))
    monkeypatch.setattr(ids, "_user_name", lambda: "joe")
    monkeypatch.setattr(ids, "_tools", lambda: True)
    return tmp_path


def write(folder: Path, uids: str, gids: str) -> None:
    (folder / "subuid").write_text(uids)
    (folder / "subgid").write_text(gids)


def test_root_s_builds_have_ids_that_belong_to_nobody() -> None:
    if not ids._mapped(ids.FIRST + ids.COUNT):
        pytest.skip("this user namespace has no such ids")
    assert ids.build_ids(65533) == ((0, 65533, 1), (1, ids.FIRST, ids.COUNT))
    assert ids.no_ids(65533) == ""


def test_a_user_has_the_ranges_of_both_tables(tables: Path) -> None:
    write(tables, "ann:100000:65536\njoe:165536:65536\n", "joe:165536:65536\n")
    assert ids.build_ids(None) == ((0, os.getuid(), 1), (1, 165536, ids.COUNT))
    assert ids.no_ids(None) == ""


@pytest.mark.parametrize(
    ("uids", "gids"),
    [
        ("", ""),
        ("ann:100000:65536\n", "ann:100000:65536\n"),
        ("joe:100000:1000\n", "joe:100000:1000\n"),
        ("joe:100000:65536\n", ""),
        ("nonsense\n", "joe:1\n"),
    ],
)
def test_without_ranges_the_command_that_makes_them_is_named(uids: str, gids: str, tables: Path) -> None:
    write(tables, uids, gids)
    assert ids.build_ids(None) == ()
    assert "usermod --add-subuids" in ids.no_ids(None)
    assert "joe" in ids.no_ids(None)


def test_without_the_tools_their_package_is_named(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tables, "joe:100000:65536\n", "joe:100000:65536\n")
    monkeypatch.setattr(ids, "_tools", lambda: False)
    assert "uidmap" in ids.no_ids(None)
