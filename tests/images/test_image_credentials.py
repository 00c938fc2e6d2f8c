"""A password in a url reaches the index, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_workshop import GatedRunner, Workshop, image
from wheel_factory import write_index

from lorry.errors import ImageBuildError
from lorry.images.credentials import as_variables, lines_to_hide, redact, secrets_in, without_credentials
from lorry.images.indexes import IndexSettings, client_index_settings
from lorry.model.image import ImageSpec, PipInstall

CANARY = "c4nary-p4ssword"


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Serves its folder to whoever knows the password."""

    expected = "Basic " + base64.b64encode(f"someone:{CANARY}".encode()).decode()

    def do_GET(self) -> None:
        if self.headers.get("Authorization") == self.expected:
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Basic")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def host(workshop: Workshop) -> Iterator[str]:
    """`127.0.0.1:port` of an index with the workshop's wheels."""
    write_index(workshop.folder / "index", workshop.wheels)
    handler = partial(Guarded, directory=str(workshop.folder / "index"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def assert_nowhere(workshop: Workshop, runner: GatedRunner) -> None:
    for path in workshop.root.rglob("*"):
        assert CANARY not in path.name
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    assert not any(CANARY in line for line in workshop.log)
    assert not any(CANARY in word for argv in runner.commands for word in argv)


def specs_for(host: str) -> list[tuple[str, ImageSpec, dict[str, str]]]:
    url = f"http://someone:{CANARY}@{host}"
    wheel = f"{url}/files/alpha-1.0-py3-none-any.whl"
    return [
        ("client settings", image(PipInstall(packages=("beta",))), {"PIP_INDEX_URL": f"{url}/simple"}),
        ("layer index", image(PipInstall(packages=("beta",), index_url=f"{url}/simple")), {}),
        ("requirements index", image(PipInstall(requirements=f"--index-url {url}/simple\nbeta")), {}),
        ("package url", image(PipInstall(packages=(f"alpha @ {wheel}",))), {"PIP_NO_INDEX": "1"}),
        ("bare url", image(PipInstall(packages=(wheel,))), {"PIP_NO_INDEX": "1"}),
    ]


@pytest.mark.parametrize("case", range(5))
def test_the_password_works_and_is_stored_nowhere(workshop: Workshop, host: str, case: int) -> None:
    _, spec, environ = specs_for(host)[case]
    settings = client_index_settings(
        {"PIP_CONFIG_FILE": "/dev/null", "UV_NO_CONFIG": "1", **environ}, workshop.folder, workshop.folder
    )
    seen: list[bytes] = []

    def note_recipe(argv: object) -> None:
        recipes = workshop.root / "recipes"
        seen.extend(path.read_bytes() for path in recipes.rglob("*") if path.is_file())

    runner = GatedRunner(note_recipe)
    built = asyncio.run(workshop.builder(runner).ensure(spec, settings, workshop.log.append))
    assert (Path(built.prefix or "") / "bin" / "alpha").exists()
    assert seen
    assert not any(CANARY.encode() in content for content in seen)
    assert_nowhere(workshop, runner)


def test_a_wrong_password_is_neither_in_the_error_nor_in_the_log(workshop: Workshop, host: str) -> None:
    spec = image(PipInstall(packages=("beta",), index_url=f"http://someone:wrong-{CANARY}@{host}/simple"))
    runner = GatedRunner()
    with pytest.raises(ImageBuildError) as caught:
        asyncio.run(workshop.builder(runner).ensure(spec, IndexSettings(), workshop.log.append))
    assert CANARY not in str(caught.value)
    assert "Hint: " in str(caught.value)
    assert_nowhere(workshop, runner)


URL_TEXT = "a https://user:pa%40ss@host/x?y=1 and git+https://t0ken@host/r.git and ssh://git@host/z"


def test_urls_lose_their_user_part_in_texts() -> None:
    shown = redact(URL_TEXT + " pa@ss", secrets_in(URL_TEXT))
    assert shown == ("a https://****@host/x?y=1 and git+https://****@host/r.git and ssh://****@host/z ****")
    assert without_credentials("https://u:p@host/x") == "https://host/x"
    assert set(secrets_in(URL_TEXT)) == {"pa%40ss", "pa@ss", "t0ken"}


def test_urls_without_a_user_part_stay_as_they_are() -> None:
    text = "https://host/a?mail=me@example.com https://host/#a@b me@host"
    assert redact(text) == without_credentials(text) == text


def test_short_words_do_not_black_out_the_log() -> None:
    assert redact("a b c", ["a", "", "abc"]) == "a b c"


safe = st.from_regex(r"[A-Za-z0-9%._~!$&*+,;=-]{1,30}", fullmatch=True)


@given(safe, safe)
def test_moving_credentials_into_variables_can_be_undone(user: str, password: str) -> None:
    text = f"x @ https://{user}:{password}@host/x.whl\ny @ https://host/y.whl"
    variables: dict[str, str] = {}
    moved = as_variables(text, variables)
    assert f"{user}:{password}@" not in moved
    for name, value in variables.items():
        moved = moved.replace(f"${{{name}}}", value)
    assert moved == text


def test_secrets_are_hidden_line_by_line_the_longest_first() -> None:
    values = ["-----BEGIN KEY-----\nabcdefgh\n  ij\n", "token-1", "token-1-and-more", "short"]
    assert lines_to_hide(values) == ("-----BEGIN KEY-----", "token-1-and-more", "abcdefgh", "token-1")
