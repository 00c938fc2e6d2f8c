from __future__ import annotations

import os
import stat
from pathlib import Path

from lorry.images.disk import disk_use, remove_tree, replace_durably, seal, sync_file_system


def test_sealing_opens_everything_for_reading_and_keeps_what_can_be_executed(tmp_path: Path) -> None:
    closed = tmp_path / "env" / "closed"
    closed.mkdir(parents=True)
    for name, mode in (("data", 0o600), ("tool", 0o700), ("open", 0o666)):
        (closed / name).write_text("x")
        (closed / name).chmod(mode)
    (closed / "link").symlink_to("/etc/shadow")
    target = os.stat("/etc/shadow").st_mode
    closed.chmod(0o700)
    assert seal(tmp_path / "env") > 0
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in closed.iterdir() if path.name != "link"}
    assert modes == {"data": 0o644, "tool": 0o755, "open": 0o644}
    assert stat.S_IMODE(closed.stat().st_mode) == 0o755
    assert os.stat("/etc/shadow").st_mode == target


def test_hard_links_are_counted_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    once = disk_use(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert disk_use(tmp_path) == disk_use(tmp_path, tmp_path) == once
    assert disk_use(tmp_path / "missing") == 0


def test_a_closed_folder_is_removed_too(tmp_path: Path) -> None:
    folder = tmp_path / "gone" / "closed"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    folder.chmod(0o500)
    remove_tree(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
    remove_tree(tmp_path / "never was")


def test_replacing_leaves_no_other_file(tmp_path: Path) -> None:
    replace_durably(tmp_path / "x.json", b"1")
    replace_durably(tmp_path / "x.json", b"2")
    sync_file_system(tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.json", b"2")]
