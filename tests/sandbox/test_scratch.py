"""What counts as a container's scratch space."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lorry.sandbox.scratch import scratch_mib

NOBODY = 0
"""A pid that is nobody's."""


def folder(tmp_path: Path) -> Path:
    for name in ("home", "tmp", "root"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(path: Path, mib: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(mib << 20))
    return path


def test_home_and_tmp_count_at_any_depth_and_nothing_else_does(tmp_path: Path) -> None:
    box = folder(tmp_path)
    put(box / "home" / "a" / "b" / "c", 2)
    put(box / "tmp" / "d", 3)
    put(box / "root" / "e", 4)
    (box / "home" / "link").symlink_to(put(tmp_path / "elsewhere", 5))
    os.link(box / "tmp" / "d", box / "home" / "again")
    with (box / "tmp" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert scratch_mib(str(box), NOBODY) == 5


def test_a_tree_deeper_than_a_path_may_be_long_hides_nothing(tmp_path: Path) -> None:
    box = folder(tmp_path)
    before = os.getcwd()
    try:
        os.chdir(box / "tmp")
        for _ in range(600):
            os.mkdir("deeper" * 10)
            os.chdir("deeper" * 10)
        put(Path("hidden"), 2)
        os.chdir(before)
        assert scratch_mib(str(box), NOBODY) >= 2
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", box / "tmp"], check=True)


def test_a_deleted_file_counts_as_long_as_it_is_open(tmp_path: Path) -> None:
    box = folder(tmp_path)
    path = put(box / "tmp" / "gone", 3)
    with path.open("rb"):
        path.unlink()
        assert scratch_mib(str(box), os.getpid()) == 3
    assert scratch_mib(str(box), os.getpid()) == 0


def test_the_files_of_a_fork_count_where_they_lie(tmp_path: Path) -> None:
    pool, box = tmp_path / "pool", tmp_path / "ct-1"
    pool.mkdir()
    box.mkdir()
    (box / "forked").symlink_to(folder(pool))
    put(pool / "tmp" / "a", 2)
    assert scratch_mib(str(box), NOBODY) == 2
