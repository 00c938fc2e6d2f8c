from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorry.errors import InvalidError
from lorry.model.image import ImageBase, ImageSpec, PipInstall
from lorry.sdk.file_pattern_matcher import FilePatternMatcher
from lorry.sdk.image import Image

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
slim = Image.debian_slim()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def spec(image: Image) -> ImageSpec:
    return image.spec(digest)


def shown(image: Image) -> list[str]:
    return [file.path for file in spec(image).files]


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_the_two_bases_carry_the_client_s_python() -> None:
    assert spec(Image.host()) == ImageSpec(base=ImageBase.HOST, python=sys.executable)
    assert spec(slim) == ImageSpec(base=ImageBase.DEBIAN_SLIM, python=sys.executable)


def test_each_method_returns_a_new_image_and_leaves_the_old_one() -> None:
    first = slim.uv_pip_install("a")
    first.uv_pip_install("b").env({"X": "1"}).workdir("/w")
    assert spec(first) == ImageSpec(python=sys.executable, installs=(PipInstall(packages=("a",)),))
    with pytest.raises(AttributeError):
        first.other = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", [None, HERE, ".".join(map(str, sys.version_info[:3]))])
def test_the_client_s_own_python_version_may_be_named(version: str | None) -> None:
    assert spec(Image.debian_slim(python_version=version)) == spec(slim)


@pytest.mark.parametrize(
    ("version", "words"), [("3.9", "3.11 to 3.14"), ("2.7", "3.11"), (f"{HERE}.99", "minor version")]
)
def test_a_python_version_that_cannot_be_is_refused(version: str, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        Image.debian_slim(version)


@pytest.mark.parametrize("version", [3.11, "3", "latest", (3, 11)])
def test_a_python_version_is_a_string(version: Any) -> None:
    with pytest.raises(InvalidError, match=re.escape(f'"{HERE}"')):
        Image.debian_slim(version)


def test_layers_keep_their_order_and_options() -> None:
    image = slim.pip_install("torch==2.13.0", ["a", "b"], index_url="http://i/", pre=True).uv_pip_install(
        "c", extra_index_url="http://e/", find_links="http://f/", extra_options="--no-deps"
    )
    assert spec(image).installs == (
        PipInstall(packages=("torch==2.13.0", "a", "b"), index_url="http://i/", pre=True),
        PipInstall(
            packages=("c",),
            extra_index_urls=("http://e/",),
            find_links=("http://f/",),
            extra_options="--no-deps",
        ),
    )


def test_pip_install_looks_into_all_indexes_as_pip_does() -> None:
    (install,) = spec(slim.pip_install("a", extra_index_url=["http://e/", "http://f/"])).installs
    assert install.extra_options == "--index-strategy=unsafe-best-match"
    chosen = slim.pip_install("a", extra_index_url="http://e/", extra_options="--index-strategy first-index")
    assert spec(chosen).installs[0].extra_options == "--index-strategy first-index"


def test_no_packages_are_no_layer() -> None:
    assert spec(slim.pip_install().uv_pip_install([])).installs == ()


@pytest.mark.parametrize(
    "package",
    [
        "numpy",
        "ruamel.yaml",
        "torch==2.13.0+cpu",
        "numpy>=2,<3",
        "a ~= 1.4.2 , != 1.4.3",
        "uvicorn[standard]>=0.30",
        "x==2.*",
        "x>=1.0rc1",
        "x==1.0.post1",
        "tomli; python_version < '3.11'",
        "x @ https://host/x.whl",
        "git+https://host/x.git@main",
        "x===weird",
    ],
)
@pytest.mark.parametrize("method", ["pip_install", "uv_pip_install"])
def test_requirements_are_taken_as_written(method: str, package: str) -> None:
    assert spec(getattr(slim, method)(package)).installs[0].packages == (package,)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("numpy torch",), "comma"),
        (("numpy, torch",), "comma"),
        (("numpy==1.0torch==2",), "comma"),
        (("numpy=1.0",), "comma"),
        (("--pre",), 'extra_options="--pre"'),
        (("",), "names no package"),
        (("a\nb",), "list of packages"),
        ((3,), "int"),
        ((["a", ["b"]],), "list"),
        ((None,), "NoneType"),
    ],
)
@pytest.mark.parametrize("method", ["pip_install", "uv_pip_install"])
def test_what_is_no_requirement_is_refused_where_it_is_written(
    method: str, arguments: tuple[Any, ...], word: str
) -> None:
    with pytest.raises(InvalidError, match=re.escape(word)):
        getattr(slim, method)(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"index_url": ["http://a/"]},
        {"extra_index_url": 3},
        {"find_links": [Path("/x")]},
        {"extra_options": ["--no-deps"]},
        {"extra_options": "--config 'open"},
        {"extra_options": "--index https://me:secret@host/simple"},
        {"extra_options": "--index=https://me:secret@host/simple"},
    ],
)
def test_options_are_checked_too_and_never_repeat_a_password(options: dict[str, Any]) -> None:
    with pytest.raises((InvalidError, TypeError)) as caught:
        slim.pip_install("a", **options)
    assert caught.type is InvalidError
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "install",
    [
        lambda image: image.pip_install("a"),
        lambda image: image.uv_pip_install("a"),
        lambda image: image.pip_install_from_requirements("requirements.txt"),
    ],
)
def test_nothing_is_installed_into_the_user_s_own_environment(install: Callable[[Image], Image]) -> None:
    with pytest.raises(InvalidError, match=r"debian_slim\(\)"):
        install(Image.host())


def test_requirements_files_are_read_when_the_app_starts_with_what_they_include(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    image = slim.pip_install_from_requirements(path)
    path.write_text("# ours\n-r more/base.txt\ntorch==2.13.0 \\\n  ; python_version > '3'  # why\n\n")
    tree(tmp_path, "more/base.txt")
    (tmp_path / "more/base.txt").write_text("numpy\n--find-links ./wheels\n")
    (install,) = spec(image).installs
    assert install.requirements == (
        f"numpy\n--find-links {tmp_path}/more/wheels\ntorch==2.13.0    ; python_version > '3'"
    )


def test_packages_and_requirements_of_one_call_are_one_layer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "b.txt").write_text("b\n")
    image = slim.uv_pip_install("c", requirements=[tmp_path / "a.txt", str(tmp_path / "b.txt")])
    assert spec(image).installs == (PipInstall(requirements="c\na\nb"),)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("-c constraints.txt", "constraint"),
        ("-e .", "add_local_python_source"),
        ("./project", "add_local_python_source"),
        ("./missing.whl", "no file"),
        ("-r missing.txt", "missing.txt"),
        ("-r requirements.txt", "includes itself"),
    ],
)
def test_requirements_that_cannot_travel_are_refused(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "requirements.txt").write_text(content)
    with pytest.raises(InvalidError, match=word):
        spec(slim.pip_install_from_requirements(tmp_path / "requirements.txt"))


def test_a_local_wheel_is_bound_to_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my lib-1.0-py3-none-any.whl").write_bytes(b"1")
    image = slim.pip_install("./my lib-1.0-py3-none-any.whl")
    first = spec(image).installs[0].packages[0]
    assert first.startswith(f"file://{tmp_path}/my%20lib-1.0-py3-none-any.whl  # sha256:")
    (tmp_path / "my lib-1.0-py3-none-any.whl").write_bytes(b"2")
    assert spec(image).installs[0].packages[0] != first


def test_wheel_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = slim.pip_install("a", find_links=["wheels", "https://host/x"])
    assert spec(image).installs[0].find_links == (f"{tmp_path}/wheels", "https://host/x")


def test_environment_and_workdir() -> None:
    image = slim.env({"A": "1", "B": "2"}).env({"A": "3"}).workdir("/a/./b/").workdir("/c")
    assert (spec(image).env, spec(image).workdir) == ((("A", "3"), ("B", "2")), "/c")


@pytest.mark.parametrize("variables", [{"A": 1}, {"": "x"}, {"A=B": "x"}, {1: "x"}, {"A": "\0"}, [("A", "1")]])
def test_environment_variables_are_strings(variables: Any) -> None:
    with pytest.raises(InvalidError):
        slim.env(variables)


@pytest.mark.parametrize("path", ["relative", "", "/a/../b", 3, Path("rel")])
def test_paths_in_the_container_are_absolute(path: Any) -> None:
    for place in (slim.workdir, lambda p: slim.add_local_file("x", p), lambda p: slim.add_local_dir("x", p)):
        with pytest.raises(InvalidError):
            place(path)


def test_a_file_is_shown_with_digest_and_executable_bit(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh")
    script.chmod(0o740)
    image = slim.add_local_file(script, "/opt/").add_local_file(__file__, "/data/x", copy=True)
    image = image.uv_pip_install("a")  # build steps may follow added files
    seen: list[Path] = []

    def note(path: Path) -> str:
        seen.append(path)
        return digest(path)

    files = {file.path: file for file in image.spec(note).files}
    assert files["/opt/run.sh"].mode == 0o755
    assert files["/data/x"].mode == 0o644
    assert files["/data/x"].digest == digest(Path(__file__))
    assert seen == [Path(__file__), script]


def test_missing_or_wrong_local_paths_are_errors_at_start_not_before(tmp_path: Path) -> None:
    tree(tmp_path, "file")
    for image, word in (
        (slim.add_local_file(tmp_path / "nope", "/x"), "no file"),
        (slim.add_local_file(tmp_path, "/x"), "add_local_dir"),
        (slim.add_local_dir(tmp_path / "nope", "/x"), "no folder"),
        (slim.add_local_dir(tmp_path / "file", "/x"), "add_local_file"),
    ):
        with pytest.raises(InvalidError, match=word):
            spec(image)


def test_a_folder_is_shown_in_order_without_what_is_ignored(tmp_path: Path) -> None:
    tree(tmp_path, "b.py", "a/c.py", "a/c.pyc", ".git/x", "data/big", "data/labels.csv")
    image = slim.add_local_dir(tmp_path, "/app", ignore=["**/*.pyc", ".git", "data", "!data/labels.csv"])
    assert shown(image) == ["/app/a/c.py", "/app/b.py", "/app/data/labels.csv"]
    by_function = slim.add_local_dir(tmp_path, "/app", ignore=lambda path: path.suffix != ".csv")
    assert shown(by_function) == ["/app/data/labels.csv"]
    assert shown(slim.add_local_dir(tmp_path, "/", ignore=~FilePatternMatcher("a"))) == [
        "/a/c.py",
        "/a/c.pyc",
    ]


def test_links_are_followed_once_and_dangling_ones_passed_over(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "a")
    tree(tmp_path / "outside", "b")
    (root / "linked").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "fifo")
    assert shown(slim.add_local_dir(root, "/app")) == ["/app/a", "/app/linked/b"]


def test_a_later_file_wins_and_a_path_is_not_file_and_folder(tmp_path: Path) -> None:
    tree(tmp_path, "one", "two")
    image = slim.add_local_file(tmp_path / "one", "/x").add_local_file(tmp_path / "two", "/x")
    assert spec(image).files[0].digest == digest(tmp_path / "two")
    with pytest.raises(InvalidError, match="'/x'"):
        spec(image.add_local_file(tmp_path / "one", "/x/y"))


def test_python_sources_go_where_python_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "pkg_a/__init__.py", "pkg_a/sub/m.py", "pkg_a/data.json", "pkg_a/__pycache__/m.pyc")
    tree(tmp_path, "single_b.py", "spaces_c/part/n.py")
    (tmp_path / "pkg_a/__init__.py").write_text("raise SystemExit('it must not be imported')")
    (tmp_path / "spaces_c/part/__init__.py").write_text("")
    (tmp_path / "spaces_c/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    image = slim.add_local_python_source("pkg_a", "single_b", "spaces_c.part")
    assert shown(image) == [
        "/root/pkg_a/__init__.py",
        "/root/pkg_a/sub/m.py",
        "/root/single_b.py",
        "/root/spaces_c/part/__init__.py",
        "/root/spaces_c/part/n.py",
    ]
    assert "/root/pkg_a/data.json" in shown(slim.add_local_python_source("pkg_a", ignore=()))
    assert "pkg_a" not in sys.modules


@pytest.mark.parametrize("module", ["no_such_module_x", "no_such.module", "sys"])
def test_modules_without_files_are_refused_at_start(module: str) -> None:
    with pytest.raises(InvalidError, match=re.escape(module)):
        spec(slim.add_local_python_source(module))


@pytest.mark.parametrize("module", ["./mylib", "mylib.py/", "", "a b", 3])
def test_a_path_is_no_module_name(module: Any) -> None:
    with pytest.raises(InvalidError):
        slim.add_local_python_source(module)


def test_imports_passes_over_what_is_missing_on_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORRY_CONTAINER_ID", raising=False)
    with slim.imports():
        import no_such_package_at_all  # noqa: F401
    with pytest.warns(UserWarning, match="boom"), slim.imports():
        raise RuntimeError("boom")


def test_imports_raises_in_a_container_of_this_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_CONTAINER_ID", "ct-1")
    other = slim.uv_pip_install("torch")

    def importing(image: Image) -> None:
        with image.imports():
            raise ModuleNotFoundError("No module named 'torch'")

    with pytest.raises(ModuleNotFoundError):
        importing(slim)
    monkeypatch.setenv("LORRY_IMAGE_RECIPE", other.recipe_id)
    importing(slim)
    with pytest.raises(ModuleNotFoundError):
        importing(other)


def test_the_recipe_id_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "from lorry.sdk.image import Image\n"
        "image = Image.debian_slim().uv_pip_install('a').add_local_dir('x', '/x', ignore=lambda path: True)\n"
        "image = image.add_local_python_source('m').env({'A': 'b'})\n"
        "print(image.recipe_id)"
    )
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, check=True).stdout
        for cwd in (tmp_path, "/")
    ]
    assert runs[0] == runs[1]
    assert slim.recipe_id != slim.env({"A": "1"}).recipe_id


@pytest.mark.parametrize(
    "call",
    [
        lambda: Image.from_registry("debian"),
        lambda: Image.from_dockerfile("Dockerfile"),
        lambda: Image.micromamba(),
    ],
)
def test_methods_of_a_later_version_say_what_works_now(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidError, match="what works now: "):
        call()


def test_an_image_is_not_constructed() -> None:
    with pytest.raises(InvalidError, match="debian_slim"):
        Image()


def test_the_module_needs_the_standard_library_only() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import lorry.sdk.image; "
        "assert 'asyncio' not in sys.modules; print([n for n in sys.modules if n.startswith('lorry')])"
    )
    root = Path(sys.modules["lorry.errors"].__file__ or "").parents[1]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = eval(done.stdout)
    assert {name.split(".")[1] for name in loaded if "." in name} <= {"errors", "model", "sdk", "wire"}
