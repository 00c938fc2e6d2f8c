"""The lines of FIRST-HOUR.md: what a new user runs into in the first hour."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import first_hour
import pytest
from installation import Installation
from server_home import ServerHome, entered

import lorry
from lorry import exception
from lorry.model.function import CodeRef, FunctionKind
from lorry.runtime import load


@pytest.fixture(scope="module")
def running(shared_home: ServerHome) -> Iterator[lorry.App]:
    with entered(shared_home), first_hour.app.run():
        yield first_hour.app


pytestmark = pytest.mark.usefixtures("server")


def python(*arguments: str, cwd: Path, stdin: str | None = None) -> str:
    """What a program of the user's prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__slash__", "/")
        path = path.with_name(path.name + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# 3: what is shipped


SCRIPT = """
import lorry
from mylib import double
import numbers_of.ours as ours
app = lorry.App("script")

class Point:
    def __init__(self, x): self.x = x
    def moved(self): return Point(double(self.x) + ours.ONE)

class Wrong(Exception): pass

@app.function()
def move(point):
    import numbers_of.lazily
    if point.x < 0: raise Wrong(point.x)
    assert type(point) is Point
    return point.moved()

if __name__ == "__main__":
    with app.run():
        moved = move.remote(Point(20))
        assert type(moved) is Point
        print(moved.x, [p.x for p in move.map([Point(1), Point(2)])])
        try:
            move.remote(Point(-1))
        except Wrong as wrong:
            print("wrong", wrong)
"""


def test_a_script_brings_its_neighbours_and_its_own_classes_travel_both_ways(tmp_path: Path) -> None:
    write(tmp_path, finetune=SCRIPT, mylib="def double(x): return 2 * x\n")
    write(tmp_path / "numbers_of", __init__="", ours="ONE = 1\n", lazily="LATE = 1\n")
    assert python("finetune.py", cwd=tmp_path).splitlines() == ["41 [3, 5]", "wrong -1"]
    (tmp_path / "elsewhere").mkdir()
    assert python(str(tmp_path / "finetune.py"), cwd=tmp_path / "elsewhere").startswith("41 ")


MODULE = """
import lorry
from . import helper
from .deep.er import BOTTOM
app = lorry.App("package")

@app.function()
def total(x):
    from pkg.deep.only_there import MORE
    return x + helper.ONE + BOTTOM + MORE

if __name__ == "__main__":
    with app.run():
        print(total.remote(1))
"""


def test_a_package_started_as_a_module(tmp_path: Path) -> None:
    write(tmp_path / "pkg", __init__="", mod=MODULE, helper="ONE = 1\n")
    write(tmp_path / "pkg" / "deep", __init__="", er="BOTTOM = 10\n", only_there="MORE = 100\n")
    assert python("-m", "pkg.mod", cwd=tmp_path) == "112"
    caller = "import pkg.mod as m\nwith m.app.run(): print(m.total.remote(2))"
    assert python("-c", caller, cwd=tmp_path) == "113"


# 15: no file at all


CELL = """
import lorry
app = lorry.App("cell")
FACTOR = 3
class Point:
    def __init__(self, x): self.x = x

@app.function()
def times(x):
    return Point(FACTOR * x)

with app.run():
    point = times.remote(2)
    print(type(point) is Point, point.x, [p.x for p in times.map(range(3))])
"""


@pytest.mark.parametrize("how", ["-c", "stdin", "exec"])
def test_a_notebook_cell(tmp_path: Path, how: str) -> None:
    if how == "-c":
        said = python("-c", CELL, cwd=tmp_path)
    elif how == "stdin":
        said = python("-", cwd=tmp_path, stdin=CELL)
    else:
        said = python("-c", f"exec({CELL!r})", cwd=tmp_path)
    assert said == "True 6 [0, 3, 6]"


def test_a_cell_that_was_pickled_by_another_python_says_so() -> None:
    from lorry.model.function import FunctionSpec

    code = CodeRef(module="__main__", qualname="f", serialized="", python="3.7")
    image = lorry.Image.debian_slim().spec(lambda _path: "")
    spec = FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=code, image=image)
    with pytest.raises(exception.SerializationError, match=r"Python 3\.7 and its container runs .*same minor version"):
        load.load(spec, "")


# 4 to 9


def test_shared_memory_has_a_sane_size(running: lorry.App) -> None:
    assert first_hour.shared_memory.remote(256 << 20) >= 4


def test_a_map_starts_no_more_containers_than_there_are_cores(running: lorry.App) -> None:
    names = list(first_hour.who.map([0.01] * 64))
    assert len(set(names)) <= max(2, len(os.sched_getaffinity(0)))


def test_the_cache_outlives_containers(running: lorry.App) -> None:
    assert first_hour.remember.remote("weights", "heavy") == "heavy"
    assert first_hour.remember_anew.remote("weights") == "heavy"
    assert set(first_hour.model_caches.remote()) == {"/root/.cache"}


@pytest.mark.parametrize("ask", [first_hour.stop_here, first_hour.ask_here])
def test_breakpoint_and_input_name_local(running: lorry.App, ask: lorry.Function) -> None:
    with pytest.raises(exception.InvalidError, match=r"no keyboard.*\.local\(\).*`lorry shell`"):
        ask.remote()


# 1 and 2: what is here and not there


MISSING = """
import lorry
{top}
app = lorry.App("top")
@app.function()
def f():
    {inside}
if __name__ == "__main__":
    with app.run():
        try: f.remote()
        except Exception as problem:
            print(type(problem).__name__, problem, *getattr(problem, "__notes__", ()), sep="\\n")
"""


def test_a_file_that_is_only_here_is_told_how_to_get_there(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("here")
    write(tmp_path, reads=MISSING.format(top="", inside="return open('data.txt').read()"))
    said = python("reads.py", cwd=tmp_path)
    assert said.startswith("FileNotFoundError")
    assert "data.txt exists on this machine, but not in the container" in said
    assert 'image = lorry.Image.debian_slim().add_local_file("data.txt", "/root/data.txt")' in said
    assert 'lorry.Volume.from_name("my-data", create_if_missing=True)' in said
    assert "batch.put_file('data.txt', 'data.txt')" in said


def test_a_file_that_is_nowhere_is_an_ordinary_error(tmp_path: Path) -> None:
    write(tmp_path, reads=MISSING.format(top="", inside="return open('data.txt').read()"))
    assert python("reads.py", cwd=tmp_path).splitlines()[-1].startswith("[Errno 2]")


@pytest.mark.parametrize("where", ["top", "inside"])
def test_a_package_that_only_the_client_has_is_told_with_its_version_and_the_line(tmp_path: Path, where: str) -> None:
    import numpy

    places = {"top": "pass", "inside": "pass", where: "import numpy"}
    write(tmp_path, imports=MISSING.format(**places))
    said = python("imports.py", cwd=tmp_path)
    assert said.startswith("ModuleNotFoundError")
    assert f"does not have the package 'numpy' (you have {numpy.__version__} installed" in said
    assert '.uv_pip_install("numpy")' in said


def test_a_package_that_nobody_has_is_told_with_the_line(tmp_path: Path) -> None:
    top = "if not lorry.is_local(): import pandas_is_not_here"
    write(tmp_path, imports=MISSING.format(top=top, inside="pass"))
    said = python("imports.py", cwd=tmp_path).replace("-", "_")
    assert "nor do you have it installed" in said
    assert '.uv_pip_install("pandas_is_not_here")' in said


# 11: another version


def test_doctor_and_status_see_another_version_and_name_the_way(own_server: ServerHome, tmp_path: Path) -> None:
    Installation(tmp_path / "older", version="0.0.9").lorry("server", "start")
    command = str(Path(sys.executable).parent / "lorry")
    for words in (["doctor"], ["server", "status"]):
        done = subprocess.run([command, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if "0.0.9" in line]
        assert f"this is {lorry.__version__}: lorry server restart" in line
    restarted = subprocess.run([command, "server", "restart"], capture_output=True, text=True, timeout=60, check=False)
    assert f"version {lorry.__version__}" in restarted.stdout, restarted.stderr


# Volumes


def test_volumes_from_outside_and_inside(running: lorry.App, tmp_path: Path) -> None:
    volume = first_hour.files
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "b.txt").write_text("two")
    with volume.batch_upload() as batch:
        batch.put_file(tmp_path / "a.txt", "/in/a.txt")
        batch.put_directory(tmp_path / "folder", "/in/folder")
        batch.put_file(tmp_path / "a.txt", "/in/again/")
    paths = {entry.path: entry.type for entry in volume.listdir("/in", recursive=True)}
    assert paths["in/a.txt"] == "file"
    assert paths["in/folder/deep"] == "directory"
    assert set(paths) >= {"in/folder/deep/b.txt", "in/again/a.txt"}
    assert first_hour.read.remote("in/folder/deep/b.txt") == "two"
    with pytest.raises(exception.AlreadyExistsError, match="force=True"), volume.batch_upload() as batch:
        batch.put_file(tmp_path / "a.txt", "/in/a.txt")
    (tmp_path / "a.txt").write_text("three")
    with volume.batch_upload(force=True) as batch:
        batch.put_file(tmp_path / "a.txt", "/in/a.txt")
    assert first_hour.read.remote("in/a.txt") == "three"
    assert "from-inside" in first_hour.write.remote("from-inside", "hello")
    assert b"".join(volume.read_file("from-inside")) == b"hello"
    volume.copy_files(["from-inside", "in/a.txt"], "/copies/")
    assert {entry.path for entry in volume.listdir("/copies")} == {"copies/from-inside", "copies/a.txt"}
    volume.remove_file("from-inside")
    with pytest.raises(exception.NotFoundError):
        b"".join(volume.read_file("from-inside"))
    with pytest.raises(exception.InvalidError, match="recursive"):
        volume.remove_file("/in")
    volume.remove_file("/in", recursive=True)
    assert "in" not in {entry.path for entry in volume.listdir("/")}
    with pytest.raises(exception.InvalidError, match="not a file on this machine"), volume.batch_upload() as batch:
        batch.put_file(tmp_path / "missing", "/x")


def test_a_volume_that_is_read_only_cannot_be_written(running: lorry.App) -> None:
    with pytest.raises(OSError, match="Read-only"):
        first_hour.write_where_it_may_not.remote("x")


def test_an_ephemeral_volume_is_gone_afterwards() -> None:
    with lorry.Volume.ephemeral() as volume:
        assert volume.listdir("/") == []
    with pytest.raises(exception.NotFoundError):
        volume.listdir("/")


def test_links_in_a_volume_lead_nobody_outside(running: lorry.App, tmp_path: Path) -> None:
    first_hour.make_links.remote()
    volume = first_hour.files
    (tmp_path / "evil").write_text("evil")
    try:
        for path in ("passwd", "out/passwd", "up/etc/passwd", "../../../etc/passwd"):
            with pytest.raises(exception.InvalidError):
                b"".join(volume.read_file(path))
        assert [entry.type for entry in volume.listdir("/out/")] == ["symlink"]
        with pytest.raises(exception.InvalidError), volume.batch_upload(force=True) as batch:
            batch.put_file(tmp_path / "evil", "/out/lorry-evil")
        assert not Path("/etc/lorry-evil").exists()
        assert {entry.type for entry in volume.listdir("/") if entry.path in ("out", "passwd", "up")} == {"symlink"}
    finally:
        for name in ("out", "passwd", "up"):
            volume.remove_file(name)
    assert Path("/etc/passwd").exists()
