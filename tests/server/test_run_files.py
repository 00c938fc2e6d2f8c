"""Folders of runs, whatever is put into them, and where containers find them."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.config import resolve
from lorry.errors import NotFoundError
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, ResumePolicy
from lorry.sandbox.interface import Mount
from lorry.scheduler.inventory import Reservation
from lorry.server import run_files
from lorry.server.blueprint import Ingredients, sandbox_spec
from lorry.server.run_files import INNER, KeptInput, RunFiles, folder_of, safe_name
from lorry.server.run_report import failure_text, thinned

names = st.one_of(st.text(), st.text("ab._-/\0é", max_size=6), st.sampled_from([".", "..", "a/../b", "x" * 300]))


@given(names, names)
def test_names_make_folders_of_their_own_and_stay_inside(one: str, other: str) -> None:
    made = safe_name(one)
    assert made not in ("", ".", "..")
    assert len(made) <= 64
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
    assert (made == safe_name(other)) == (one == other)


def test_even_a_name_that_looks_like_a_made_one_is_another() -> None:
    assert safe_name(safe_name("a b")) != safe_name("a b")


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    made = RunFiles(tmp_path / "runs", None)
    made.make("a/f/ru-1")
    return made


def test_a_container_may_write_only_in_the_folders_of_runs(files: RunFiles) -> None:
    assert files.of_function("a", "f") == files.path("a/f")
    assert os.stat(files.path("a/f/ru-1")).st_mode & 0o777 == 0o700
    assert folder_of("a", "f", "ru-1") == "a/f/ru-1"


@pytest.mark.parametrize("reference", [None, b"reference"])
def test_an_input_is_kept_once(files: RunFiles, tmp_path: Path, reference: bytes | None) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"payload")
    for batch in (True, False):
        files.keep_input("a/f/ru-1", KeptInput(batch=batch, reference=reference), large if reference else b"payload")
    kept, payload = files.kept_input("a/f/ru-1")
    assert kept == KeptInput(batch=True, reference=reference)
    if isinstance(payload, int):
        assert os.pread(payload, 100, 0) == b"payload"
        os.close(payload)
    else:
        assert payload == b"payload"
    assert sorted(path.name for path in files.path("a/f/ru-1").iterdir()) == ["input", "input.json"]


@pytest.mark.parametrize("reference", [None, b"reference"])
def test_an_input_is_kept_after_a_try_that_ended_half_way(
    files: RunFiles, tmp_path: Path, reference: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the disk was full, once the server died: the payload lay there, what describes it did not."""
    large = tmp_path / "large"
    large.write_bytes(b"payload")
    keep = "a/f/ru-1", KeptInput(batch=False, reference=reference), large if reference else b"payload"
    with monkeypatch.context() as full:
        full.setattr(run_files, "to_json", lambda _kept: "x" * 1000)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                files.keep_input(*keep)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in files.path("a/f/ru-1").iterdir()] == ["input"], "nothing half is left"
    files.keep_input(*keep)
    assert sorted(path.name for path in files.path("a/f/ru-1").iterdir()) == ["input", "input.json"]
    assert (files.path("a/f/ru-1") / "input").read_bytes() == b"payload"


def test_an_input_on_another_disk_is_copied(files: RunFiles) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as large:
        large.write(b"payload")
        large.flush()
        assert os.stat(large.name).st_dev != os.stat(files.path("a")).st_dev
        files.keep_input("a/f/ru-1", KeptInput(batch=False, reference=b"reference"), Path(large.name))
    _, payload = files.kept_input("a/f/ru-1")
    assert isinstance(payload, int)
    assert os.pread(payload, 100, 0) == b"payload"
    os.close(payload)


@pytest.mark.parametrize("victim", ["input", "input.json"])
def test_an_input_that_was_replaced_by_a_link_is_not_read(files: RunFiles, victim: str) -> None:
    files.keep_input("a/f/ru-1", KeptInput(batch=False), b"payload")
    path = files.path("a/f/ru-1") / victim
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(NotFoundError, match="not kept any more"):
        files.kept_input("a/f/ru-1")


def test_a_folder_that_was_replaced_by_a_link_is_neither_read_nor_emptied(files: RunFiles, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "progress.json").write_text("{}")
    files.path("a/f/ru-1").rmdir()
    files.path("a/f/ru-1").symlink_to(elsewhere)
    with pytest.raises(FileNotFoundError):
        files.read("a/f/ru-1", "progress.json", most=10)
    files.remove("a/f/ru-1")
    assert files.folders() == []
    assert (elsewhere / "progress.json").exists()


def test_the_tail_of_a_file_is_what_it_ends_with(files: RunFiles) -> None:
    (files.path("a/f/ru-1") / "metrics.jsonl").write_bytes(b"0123456789")
    assert files.tail("a/f/ru-1", "metrics.jsonl", 4) == b"6789"
    assert files.tail("a/f/ru-1", "metrics.jsonl", 40) == b"0123456789"
    assert files.tail("a/f/ru-1", "nothing", 4) == b""


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("resumable", [True, False])
def test_a_resumable_function_finds_its_runs(tmp_path: Path, isolated: bool, resumable: bool) -> None:
    policy = ResumePolicy() if resumable else None
    spec = FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), resumable=policy)
    image: Any = SimpleNamespace(python="/p", workdir="", layers=(), env=(), base_prefix="", prefix="")
    parts = Ingredients(
        container_id="ct-1",
        app_id="ap-1",
        app_name="a",
        token="t",
        spec=spec,
        image=image,
        source=tmp_path,
        files=None,
        volumes=(),
        secrets={},
        folder=tmp_path,
        cache=tmp_path,
        reservation=Reservation(container_id="ct-1", cores=1.0, memory_mib=1),
        cores=1.0,
        runs=tmp_path / "runs" if resumable else None,
    )
    described = sandbox_spec(parts, resolve({"LORRY_STATE_DIR": str(tmp_path)}), tmp_path, isolated)
    mount = Mount(source=str(tmp_path / "runs"), target=INNER, read_only=False)
    assert (mount in described.mounts) is (isolated and resumable)


@given(st.lists(st.integers(), max_size=40), st.integers(0, 50))
def test_thinned_rows_keep_their_ends_and_their_order(rows: list[int], points: int) -> None:
    rows = list(range(len(rows)))
    kept = thinned(rows, points)
    assert len(kept) == min(len(rows), points)
    assert kept == sorted(set(kept))
    if kept:
        assert kept[-1] == rows[-1]
    if len(kept) > 1:
        assert kept[0] == rows[0]


@given(st.binary(max_size=50))
def test_a_failure_of_any_bytes_has_a_text(payload: bytes) -> None:
    assert isinstance(failure_text(payload), str)
