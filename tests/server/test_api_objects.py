"""Ids of secrets tell equal content, and nothing about it to who sees them. Uploads arrive whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorry.clock import ManualClock
from lorry.sdk.steps import Ask
from lorry.sdk.upload import PIECE, upload_bytes
from lorry.server.api_objects import ObjectApi
from lorry.server.parameters import checked
from lorry.storage.blobs import BlobStore
from lorry.storage.secrets import SecretBox
from lorry.store.memory import MemoryStore


def api(folder: Path) -> ObjectApi:
    provision: Any = SimpleNamespace(secrets=SecretBox(folder / "secret.key"))
    return ObjectApi(ManualClock(), MemoryStore(), provision)


async def answer(objects: ObjectApi, session: Any, step: Ask) -> Any:
    """As the frontend calls it."""
    return await getattr(objects, step.method)(session, checked(step.method, step.params), 1)


def test_equal_values_have_the_same_id_on_one_server_only(tmp_path: Path) -> None:
    values = {"B": "2", "A": "1"}
    one = api(tmp_path / "one")._content_id(None, values)
    assert len(one) == 16
    assert api(tmp_path / "one")._content_id(None, {"A": "1", "B": "2"}) == one
    assert api(tmp_path / "one")._content_id("named", values) != one
    assert api(tmp_path / "one")._content_id(None, {"A": "1", "B": "3"}) != one
    assert api(tmp_path / "two")._content_id(None, values) != one
    assert hashlib.sha256(repr((None, sorted(values.items()))).encode()).digest()[:16] != one


def test_half_done_uploads_end_with_their_client(tmp_path: Path) -> None:
    aborted: list[str] = []
    writer: Any = SimpleNamespace(abort=lambda: aborted.append("x"))
    objects = api(tmp_path)
    mine: Any = object()
    objects._uploads = {(mine, "d1"): writer, (mine, "d2"): writer, (object(), "d1"): writer}
    objects.forget(mine)
    assert len(aborted) == 2
    assert len(objects._uploads) == 1


@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * PIECE, 3 * PIECE + 5])
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_an_upload_that_loses_its_server_begins_again(tmp_path: Path, size: int, lost: int) -> None:
    """Before piece `lost` the connection ends: the next server, or the same one, knows nothing of the pieces."""
    blobs = BlobStore(tmp_path / "blobs")
    provision: Any = SimpleNamespace(blobs=blobs, secrets=None)
    objects = ObjectApi(ManualClock(), MemoryStore(), provision)
    data = bytes(range(251)) * (size // 251 + 1)
    steps = upload_bytes(data[:size])
    session, sent = object(), 0
    step = next(steps)
    try:
        while True:
            assert isinstance(step, Ask)
            if step.method == "blob_put":
                if sent == lost:
                    objects.forget(session)  # type: ignore[arg-type]
                    session = object()
                sent += 1
            step = steps.send(asyncio.run(answer(objects, session, step)))
    except StopIteration as ended:
        digest = ended.value
    assert blobs.path(digest).read_bytes() == data[:size]
    assert sent <= lost + 1 + size // PIECE + 1


def test_a_last_piece_that_is_asked_again_finds_the_file_there(tmp_path: Path) -> None:
    provision: Any = SimpleNamespace(blobs=BlobStore(tmp_path / "blobs"), secrets=None)
    objects = ObjectApi(ManualClock(), MemoryStore(), provision)
    params = {"digest": hashlib.sha256(b"x").hexdigest(), "offset": 0, "data": "eA==", "last": True}
    for session in (object(), object()):
        reply = asyncio.run(answer(objects, session, Ask("blob_put", params)))
        assert reply["done"]
    assert objects._uploads == {}
