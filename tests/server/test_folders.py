"""What the server does in folders that user code of its own user can write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorry.sandbox.records import files_of, open_outputs
from lorry.server.folders import forks_in, make_template_folder, move_into, remove_folder, take_back, template_of


@pytest.fixture
def template(tmp_path: Path) -> Path:
    folder = tmp_path / "tp-1"
    make_template_folder(folder)
    return folder


@pytest.fixture
def container(tmp_path: Path, template: Path) -> Path:
    """Its files are in the pool."""
    folder = tmp_path / "ct-1"
    (folder / "forked" / "home").mkdir(parents=True)
    (folder / "hidden").touch()
    (folder / "cgroup").touch()
    move_into(template, folder)
    return folder


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    (folder / "home").mkdir(parents=True)
    (folder / "home" / "file").touch()
    for name in ("out", "err"):
        os.mkfifo(folder / name)
    return folder


def replace(folder: Path, target: Path) -> None:
    """As import-time code would."""
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(target)


def test_a_template_sees_a_container_s_files_and_nothing_that_the_server_believes(
    container: Path, template: Path
) -> None:
    assert sorted(path.name for path in (template / "pool").rglob("*")) == ["ct-1", "home"]
    assert files_of(str(container)) == str(template / "pool" / "ct-1")
    assert template_of(container) == template
    assert forks_in(template) == ["ct-1"]


def test_after_a_fork_that_failed_its_folder_is_as_before(container: Path, template: Path) -> None:
    take_back(container)
    assert template_of(container) is None
    assert forks_in(template) == []
    assert os.listdir(template / "pool") == []
    assert os.listdir(container) == ["hidden"]


def test_a_folder_that_import_time_code_makes_in_the_pool_is_no_fork(template: Path) -> None:
    """It would keep a template alive that the server wants to end."""
    (template / "pool" / "ct-none").mkdir()
    assert forks_in(template) == []


@pytest.mark.parametrize("remove", [remove_folder, take_back])
def test_a_link_in_the_pool_is_not_followed_by_what_removes(
    container: Path, template: Path, precious: Path, remove: object
) -> None:
    replace(template / "pool" / "ct-1", precious)
    remove(container)  # type: ignore[operator]
    assert (precious / "home" / "file").exists()
    assert template_of(container) is None
    assert forks_in(template) == []


def test_only_pipes_are_read_as_a_container_s_output(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "out")
    (tmp_path / "err").write_text("")
    with pytest.raises(OSError, match="not what was put there"):
        open_outputs(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_pipes_of_another_container_are_not_read_as_this_one_s(
    container: Path, template: Path, precious: Path, tmp_path: Path
) -> None:
    replace(template / "pool" / "ct-1", precious)
    with pytest.raises(OSError, match="ct-1"):
        open_outputs(files_of(str(container)))
    for name in ("out", "err"):
        (tmp_path / name).symlink_to(precious / name)
    with pytest.raises(OSError, match="out"):
        open_outputs(str(tmp_path))
