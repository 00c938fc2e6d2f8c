"""Ids of secrets tell equal content, and nothing about it to who sees them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lorry.clock import ManualClock
from lorry.server.api_objects import ObjectApi
from lorry.storage.secrets import SecretBox
from lorry.store.memory import MemoryStore


def api(folder: Path) -> ObjectApi:
    provision: Any = SimpleNamespace(secrets=SecretBox(folder / "secret.key"))
    return ObjectApi(ManualClock(), MemoryStore(), provision)


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
