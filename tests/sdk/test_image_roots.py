"""Images that need a root file system of their own: how they are written, and what the server is sent."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from lorry.errors import InvalidError
from lorry.model.image import ImageBase, ImageSpec, StepKind
from lorry.sdk.image import Image
from lorry.sdk.image_function import content_key, pickled
from lorry.sdk.image_steps import remove_temporary
from lorry.sdk.requirements import locked_text
from lorry.sdk.secret import Secret
from lorry.wire import pickling

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER = "3.13" if HERE != "3.13" else "3.11"
SIZE = 3
slim = Image.debian_slim()


def spec(image: Image) -> ImageSpec:
    return image.spec(lambda path: hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(autouse=True)
def leave_no_temporary_files() -> None:
    remove_temporary()


def helper(text: str) -> str:
    return text * SIZE


def fill(name: str, times: int = 1) -> str:
    return helper(name) * times


def test_packages_alone_need_no_root() -> None:
    found = spec(slim.uv_pip_install("six").add_local_file(__file__, "/x", copy=True))
    assert found.base is ImageBase.DEBIAN_SLIM
    assert not found.rooted
    assert found.steps == ()
    assert [file.path for file in found.files] == ["/x"]


@pytest.mark.parametrize(
    "image",
    [
        slim.apt_install("git"),
        slim.run_commands("true"),
        slim.run_function(fill, args=("a",)),
        Image.debian_slim(OTHER),
    ],
)
def test_what_needs_a_root_gets_that_of_debian(image: Image) -> None:
    found = spec(image)
    assert found.base is ImageBase.DEBIAN_ROOT
    assert found.rooted
    assert found.python_version in (HERE, OTHER)


def test_steps_keep_their_order_and_what_was_set_before_them(tmp_path: Path) -> None:
    file = tmp_path / "f.txt"
    file.write_text("x")
    image = (
        slim.uv_pip_install("six")
        .env({"A": "1"})
        .apt_install("git", ["curl"])
        .add_local_file(file, "/copied", copy=True)
        .workdir("/w")
        .run_commands("one", "two", env={"B": "2"})
        .env({"A": "3"})
        .uv_pip_install("attrs")
        .add_local_file(file, "/shown")
    )
    found = spec(image)
    kinds = [step.kind for step in found.steps]
    assert kinds == [StepKind.PIP, StepKind.APT, StepKind.FILES, StepKind.COMMANDS, StepKind.PIP]
    assert [found.installs[step.install].packages for step in found.steps if step.kind is StepKind.PIP] == [
        ("six",),
        ("attrs",),
    ]
    commands = found.steps[3]
    assert (commands.words, dict(commands.env), commands.workdir) == (("one", "two"), {"A": "1", "B": "2"}, "/w")
    assert found.steps[1].words == ("git", "curl")
    assert [file.path for file in found.files] == ["/shown"]
    assert len(found.blobs()) == 2


def test_secrets_of_steps_go_by_name() -> None:
    image = slim.run_commands("true", secrets=[Secret.from_name("hub")])
    assert [secret.name for secret in image.build_secrets] == ["hub"]
    assert spec(image).steps[0].secret_ids == ("name:hub",)


def test_force_build_names_another_layer_each_time() -> None:
    one, two = (spec(slim.run_commands("date", force_build=True)).steps[0].words for _ in range(2))
    assert one[0] == two[0] == "date"
    assert one != two


def test_a_function_s_key_follows_what_it_uses_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    key = content_key(fill, ("a",), {"times": 2})
    assert key == content_key(fill, ("a",), {"times": 2})
    assert key != content_key(fill, ("b",), {"times": 2})
    assert key != content_key(helper, ("a",), {"times": 2})
    monkeypatch.setattr(sys.modules[__name__], "OTHER", "changed")
    assert key == content_key(fill, ("a",), {"times": 2})
    monkeypatch.setattr(sys.modules[__name__], "SIZE", 4)
    assert key != content_key(fill, ("a",), {"times": 2})


def test_a_function_travels_with_what_it_uses_of_its_file() -> None:
    data = pickled(fill, ("ab",), {"times": 2})
    assert b"helper" in data
    function, args, kwargs = pickling.loads([data])
    assert function is not fill
    assert function(*args, **kwargs) == "ab" * 6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: slim.apt_install("two words"), "not the name of a Debian package"),
        (lambda: slim.apt_install("-o Foo=bar"), "not the name of a Debian package"),
        (lambda: slim.apt_install(3), "must be strings"),
        (lambda: slim.run_function("text"), "takes a plain function"),
        (lambda: slim.run_commands("x", secrets="hub"), "list of Secrets"),
        (lambda: Image.host().apt_install("git"), "own machine"),
        (lambda: spec(Image.from_oci_archive("/nowhere.tar")), "there is no file '/nowhere.tar'"),
        (lambda: spec(Image.from_oci_archive("/etc")), "'/etc' is a folder.*tar -C /etc"),
        (lambda: Image.from_oci_archive("x.tar", add_python="3.8"), "3.11 to 3.14"),
        (lambda: Image.from_registry("debian"), "docker save"),
        (lambda: spec(slim.uv_sync("/nowhere")), "no pyproject.toml"),
    ],
)
def test_mistakes_are_sentences(call: object, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        call()  # type: ignore[operator]


def test_parameters_of_modal_without_an_effect_are_said_and_others_refused() -> None:
    with pytest.warns(UserWarning, match="gpu= has no effect"):
        slim.run_commands("true", gpu="any")
    with pytest.raises(TypeError, match="no parameter 'colour'"):
        slim.apt_install("git", colour="red")


def test_require_hashes_is_an_option_for_uv(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("six==1.17.0 --hash=sha256:00\n")
    image = slim.pip_install_from_requirements(tmp_path / "r.txt", require_hashes=True)
    assert spec(image).installs[0].extra_options == "--require-hashes"


def test_uv_sync_takes_what_the_lock_names(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["six"]\n'
        '[project.optional-dependencies]\nmore = ["attrs"]\n'
    )
    with pytest.raises(InvalidError, match=r"no uv\.lock.*`uv lock`"):
        spec(slim.uv_sync(tmp_path))
    (tmp_path / "uv.lock").write_text(LOCK)
    plain = spec(slim.uv_sync(tmp_path)).installs[0].requirements or ""
    assert "six==1.17.0" in plain
    assert "--hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274" in plain
    assert "mine" not in [line.split("==")[0] for line in plain.splitlines()]
    assert "attrs==" not in plain
    assert "attrs==25.1.0" in (spec(slim.uv_sync(tmp_path, extras=["more"])).installs[0].requirements or "")


def test_a_local_project_that_a_lock_names_is_refused_with_the_way(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InvalidError, match=r"Image.uv_sync: './mine' is a project folder.*add_local_python_source"):
        locked_text("six==1 \\\n    --hash=sha256:00\n./mine\n    # via p\n", tmp_path, "Image.uv_sync")


LOCK = """version = 1
requires-python = ">=3.11"

[[package]]
name = "attrs"
version = "25.1.0"
source = { registry = "https://pypi.org/simple" }
wheels = [
    { url = "https://files.pythonhosted.org/a/attrs-25.1.0-py3-none-any.whl", hash = "sha256:c75a69e28a550a7e93789579c22aa26b0f5b83b75dc4e08fe092980051e1090a", size = 63152 },
]

[[package]]
name = "mine"
version = "1"
source = { virtual = "." }
dependencies = [
    { name = "six" },
]

[package.optional-dependencies]
more = [
    { name = "attrs" },
]

[package.metadata]
requires-dist = [
    { name = "attrs", marker = "extra == 'more'" },
    { name = "six" },
]
provides-extras = ["more"]

[[package]]
name = "six"
version = "1.17.0"
source = { registry = "https://pypi.org/simple" }
wheels = [
    { url = "https://files.pythonhosted.org/a/six-1.17.0-py2.py3-none-any.whl", hash = "sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274", size = 11050 },
]
"""  # noqa: E501
