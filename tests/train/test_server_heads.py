"""A run whose newest checkpoint is with a server: the files are in the folder, the word is the server's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from store_saving import contents, saved, staged, state_at

from lorry.errors import ConnectionError, CorruptCheckpointError, StaleAttemptError
from lorry.train.folder_store import FolderStore
from lorry.train.server_heads import ServerHeads
from lorry.train.store import resolve


class Server:
    """Tokens and the head in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, 0
        self.head: dict[str, Any] | None = None
        self.asked: list[str] = []
        self.lost = False

    def __call__(self, method: str, params: dict[str, Any]) -> Any:
        self.asked.append(method)
        if method == "run_begin":
            self.token += 1
            numbers = {"attempt": self.token, "interruptions": self.token - 1, "seconds": 60 * self.token}
            return {"run_id": "ru-1", "folder": str(self.folder), "token": self.token, "head": self.head, **numbers}
        assert method == "run_commit"
        assert params.keys() == {"run_id", "token", "manifest", "step"}
        if params["token"] != self.token:
            raise StaleAttemptError("a newer attempt has begun")
        assert list(self.folder.glob(f"m/{params['step']}-{params['manifest']}.json")), "the manifest is there before"
        if self.lost:
            raise ConnectionError("the server was lost")
        self.head = {key: params[key] for key in ("manifest", "step", "token")}
        return {}

    def attempt(self) -> FolderStore:
        heads = ServerHeads(self)
        store = FolderStore(heads.folder, heads)
        store.begin()
        return store


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "ru-1")


def test_the_head_is_with_the_server_and_the_bytes_are_in_the_folder(server: Server) -> None:
    first = server.attempt()
    assert resolve(first) is None
    head = saved(first, 1, 1)
    assert server.head == {"manifest": head.manifest, "step": 1, "token": 1}
    assert server.asked == ["run_begin", "run_commit"], "an attempt begins once"
    assert not {path.name for path in server.folder.iterdir()} & {"HEAD", "TOKEN"}
    second = server.attempt()
    newest = resolve(second)
    assert newest is not None
    assert contents(second, newest) == state_at(1)


def test_the_server_s_numbers_are_the_past(server: Server) -> None:
    server.attempt()
    past = ServerHeads(server).past
    assert (past.attempt, past.interruptions, past.seconds) == (2, 1, 120.0)


def test_a_stale_attempt_is_refused_by_its_folder_and_by_the_server(server: Server) -> None:
    old = server.attempt()
    head = saved(old, 1, 1)
    manifest = staged(old, 2, 1, head.manifest)
    ServerHeads(server)  # it dies before it touches the folder
    with pytest.raises(StaleAttemptError, match="a newer attempt has begun"):
        old.commit(manifest)
    newer = server.attempt()
    for refused in (lambda: old.put(memoryview(b"more")), lambda: old.collect([])):
        with pytest.raises(StaleAttemptError):
            refused()
    assert server.head is not None
    assert server.head["step"] == 1
    assert contents(newer, newer.manifest(head.manifest)) == state_at(1)


def test_an_attempt_with_an_older_token_does_not_take_the_folder_from_a_newer_one(server: Server) -> None:
    slow, heads = ServerHeads(server), ServerHeads(server)
    newer = FolderStore(heads.folder, heads)
    newer.begin()
    with pytest.raises(StaleAttemptError, match="attempt 2 has begun"):
        FolderStore(slow.folder, slow).begin()
    saved(newer, 1, 2)


def test_a_commit_whose_answer_never_came_is_no_harm(server: Server) -> None:
    store = server.attempt()
    head = saved(store, 1, 1)
    server.lost = True
    with pytest.raises(ConnectionError):
        saved(store, 2, 1, head.manifest)
    server.lost = False
    third = saved(store, 3, 1, head.manifest)
    assert store.head() == third
    store.collect([third.manifest])
    assert len(list(server.folder.glob("m/*"))) == 1
    assert contents(store, store.manifest(third.manifest)) == state_at(3)


def test_files_without_a_head_are_no_new_start(server: Server) -> None:
    """The server names a checkpoint, and somebody has removed the folder."""
    saved(server.attempt(), 1, 1)
    server.folder.rename(server.folder.with_name("elsewhere"))
    with pytest.raises(CorruptCheckpointError, match="is missing"):
        resolve(server.attempt())
