"""What the server believes of the files that a sandbox leaves."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from lorry.ids import new_id
from lorry.sandbox.cgroups import NoGroup
from lorry.sandbox.interface import SandboxSpec
from lorry.sandbox.limits import NoLimits, find_limits
from lorry.sandbox.records import ExitRecord, read_group, read_record, write_group

LIMITS = find_limits()


def test_a_record_that_names_a_folder_of_process_ids_kills_nobody(tmp_path: Path) -> None:
    folder, group = tmp_path / "ct-1", tmp_path / "lorry" / "ct-1"
    folder.mkdir()
    group.mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"]) as victim:
        (group / "cgroup.procs").write_text(str(victim.pid))
        for directories in ({"memory": str(group)}, {"unified": str(group)}):
            (folder / "cgroup").write_text(json.dumps(directories))
            read_group(str(folder)).kill()
        assert victim.poll() is None
        victim.kill()
        assert victim.wait() == -9


@pytest.mark.skipif(isinstance(LIMITS, NoLimits), reason="no control groups can be made here")
def test_a_group_is_believed_in_its_own_container_s_folder_only(tmp_path: Path) -> None:
    own, other = tmp_path / new_id("ct"), tmp_path / new_id("ct")
    group = LIMITS.make(SandboxSpec(container_id=own.name, argv=(), env=(), folder=str(own)))
    try:
        for folder in (own, other):
            folder.mkdir()
            write_group(str(folder), group)
        assert read_group(str(own)).directories == group.directories
        assert isinstance(read_group(str(other)), NoGroup)
    finally:
        group.remove()


@pytest.mark.parametrize("text", ["[1]", "7", '{"memory": 7}', '{"memory": "/"}', "", '{"unified": "/sys/fs/cgroup"}'])
def test_a_group_s_record_of_another_kind_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "cgroup").write_text(text)
    assert isinstance(read_group(str(tmp_path)), NoGroup)


def test_a_record_of_the_end_is_read(tmp_path: Path) -> None:
    (tmp_path / "exit").write_text("-9 2048 1.250\n")
    assert read_record(str(tmp_path)) == ExitRecord(code=-9, peak_kib=2048, cpu_seconds=1.25)


@pytest.mark.parametrize(
    "text", ["", "0 1", "0 1 inf", "0 1 nan", f"0 {2**60} 1", "0 -1 1", "256 1 1", "-65 1 1", "0 1 " + "1" * 300]
)
def test_a_record_of_an_end_that_cannot_be_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "exit").write_text(text)
    assert read_record(str(tmp_path)) is None


def test_a_pipe_in_place_of_the_record_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "exit")
    assert read_record(str(tmp_path)) is None


def test_the_record_of_a_fork_is_read_where_its_template_writes_it(tmp_path: Path) -> None:
    pool, folder = tmp_path / "pool", tmp_path / "ct-1"
    pool.mkdir()
    folder.mkdir()
    (pool / "exit").write_text("0 1 1\n")
    (folder / "forked").symlink_to(pool)
    assert read_record(str(folder)) is not None
    (pool / "exit").rename(pool / "other")
    (pool / "exit").symlink_to(pool / "other")
    assert read_record(str(folder)) is None
