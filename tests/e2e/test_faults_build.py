"""The worker dies while an image is built: it is built again, and nothing of the half-made one is used."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import packaged
import pytest
from server_home import ServerHome, kill_and_wait, wait_until
from test_faults_server import Caller
from wheel_factory import write_wheel


class GatedIndex(http.server.ThreadingHTTPServer):
    """An index with one package. The first download of its wheel is answered when the test says so."""

    daemon_threads = True

    def __init__(self, wheel: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Pages)
        self.wheel = wheel
        self.downloads: list[str] = []
        self.gate = threading.Event()
        self.answered = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple"


class _Pages(http.server.BaseHTTPRequestHandler):
    server: GatedIndex

    def do_GET(self) -> None:
        if self.path == "/simple/gated/":
            self._answer("text/html", f'<a href="/files/{self.server.wheel.name}">wheel</a>'.encode())
        elif self.path == f"/files/{self.server.wheel.name}":
            self._download()
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _download(self) -> None:
        self.server.downloads.append(self.command)
        first = len(self.server.downloads) == 1
        if first:
            self.server.gate.wait(60)
        try:
            self._answer("application/zip", self.server.wheel.read_bytes())
        except OSError:  # the build that asked was killed
            pass
        finally:
            if first:
                self.server.answered.set()

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatedIndex]:
    server = GatedIndex(write_wheel(tmp_path, "gated"))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("UV_DEFAULT_INDEX", server.url)
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_build_whose_worker_dies_is_done_again_and_the_half_made_one_is_not_used(
    own_server: ServerHome, index: GatedIndex
) -> None:
    environments = own_server.state / "images" / "uv"

    def attempts() -> set[str]:
        return {folder.name for folder in environments.glob("*.*")} if environments.exists() else set()

    def run() -> str:
        with packaged.app.run():
            return str(packaged.where.remote())

    client = Caller(run)
    wait_until(lambda: index.downloads, 30)
    (half_made,) = attempts()
    assert not list((own_server.state / "images" / "images").glob("*.json")), "it counts before it is done"
    kill_and_wait(own_server.worker_pid())
    module = Path(str(client.answer()))
    assert module.is_relative_to(environments)
    used = module.relative_to(environments).parts[0]
    assert used != half_made
    (manifest,) = (own_server.state / "images" / "images").glob("*.json")
    assert json.loads(manifest.read_text())["folder"] == used
    wait_until(lambda: not build_processes(own_server))
    assert attempts() == {used}, "the half-made environment was left behind"
    assert not list((own_server.state / "builds").iterdir())


def build_processes(home: ServerHome) -> list[int]:
    """Processes that work below the images folder: uv, and what it starts."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"/uv") and any(str(home.state).encode() in word for word in words):
            found.append(int(entry))
    return found
