"""The cache of downloads: kept when containers end, filled once however many start together."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import hub_cache
import pytest
from server_home import ServerHome

TOGETHER = 4
FILE = "/me/model/resolve/main/model.safetensors"
CONTENT = b"weights" * 100_000


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as downloading one file needs. The file is handed out once everybody has asked for it."""

    asked: ClassVar[Counter[str]] = Counter()
    everybody: ClassVar = threading.Barrier(TOGETHER)
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.asked["HEAD"] += 1
        self._head()
        if self.asked["HEAD"] <= TOGETHER:
            self.everybody.wait(60)

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        self._head()
        self.wfile.write(CONTENT)

    def _head(self) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"7f"', "X-Repo-Commit": "a" * 40, "Content-Length": str(len(CONTENT))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("tier", ["auto", "process"])
def test_containers_that_start_together_download_a_model_once_and_later_ones_not_at_all(
    own_server: ServerHome, hub: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORRY_SANDBOX", tier)
    Hub.asked.clear()

    def one(number: int) -> tuple[str, bytes]:
        variant = hub_cache.download.with_options(env={"HF_ENDPOINT": hub, "N": str(number)})
        return variant.remote("me/model")

    with hub_cache.app.run(), ThreadPoolExecutor(TOGETHER) as pool:
        answers = list(pool.map(one, range(TOGETHER)))
    assert {content for _, content in answers} == {CONTENT}
    cache = str(own_server.state / "cache") if tier == "process" else "/root/.cache/huggingface"
    assert all(path.startswith(f"{cache}/") for path, _ in answers)
    assert Hub.asked[FILE] == 1

    with hub_cache.app.run():  # the containers of before are gone
        assert one(TOGETHER)[1] == CONTENT
    assert Hub.asked[FILE] == 1
