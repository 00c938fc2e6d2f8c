"""A run without training: it does what the test orders, by files in its folder, as `lorry.run()` would."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import lorry
from lorry.errors import Error, YieldSlice
from lorry.runtime import slice as slices
from lorry.train.manifest import BLOB, Chunk, Entry, Manifest
from lorry.train.server_heads import OneConnection
from lorry.wire.codec import to_json

app = lorry.App("run.by.hand")
policy = lorry.Resumable(grace=5, keep_every=None)


class Hand:
    def __init__(self) -> None:
        self.ask = OneConnection()
        self.begin()
        slices.current.active = True

    def begin(self) -> dict[str, Any]:
        self.begun = self.ask("run_begin", {})
        self.folder = Path(self.begun["folder"])
        self.token = self.begun["token"]
        return self.begun

    def save(self, step: int, content: str = "", damage: str = "", lie: dict[str, Any] | None = None) -> str:
        """The manifest's id."""
        data = (content or f"state at {step}").encode()
        digest = hashlib.sha256(data).hexdigest()
        chunk = self.folder / "chunks" / digest[:2] / digest
        for place in (chunk.parent, self.folder / "m"):
            place.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(data)
        entry = Entry(name="w", dtype=BLOB, shape=(), chunks=(Chunk(sha256=digest, size=len(data)),))
        fields = {"run_id": self.begun["run_id"], "step": step, "token": self.token}
        manifest = Manifest(
            **{**fields, **(lie or {})},
            parent=None,
            entries=(entry,),
            structure={},
            fingerprint={},
            created_at=time.time(),
            stall_seconds=0.0,
        )
        text = to_json(manifest)
        name = hashlib.sha256(text.encode()).hexdigest()
        path = self.folder / "m" / f"{step}-{name}.json"
        path.write_text(text)
        self.spoil(damage, path, chunk)
        told = {**fields, "manifest": name}
        self.ask("run_commit", told)
        return name

    def spoil(self, damage: str, path: Path, chunk: Path) -> None:
        if damage == "bit":
            path.write_bytes(path.read_bytes()[:-1] + b" ")
        elif damage == "chunk":
            chunk.unlink()
        elif damage == "short":
            chunk.write_bytes(b"")
        elif damage:
            path.unlink()
        if damage == "link":
            path.symlink_to("/dev/zero")
        elif damage == "fifo":
            os.mkfifo(path)
        elif damage == "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        elif damage == "folder":
            path.mkdir()

    def commit(self, **told: Any) -> None:
        self.ask("run_commit", told)

    def tell(self, **fields: Any) -> None:
        said = {"token": self.token, "at": time.monotonic(), "phase": "training", "total": 100, **fields}
        self.put("progress.json", json.dumps({"seconds_per_step": 0.5, "q99": 1.0, "yield_at": None, **said}))

    def note(self, **row: Any) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def put(self, name: str, text: str) -> None:
        (self.folder / f"{name}.new").write_text(text)
        os.rename(self.folder / f"{name}.new", self.folder / name)

    def fail(self, text: str) -> None:
        raise ValueError(text)

    def dawdle(self) -> None:
        """No safe point until somebody says so."""
        (self.folder / "dawdles").touch()
        while not (self.folder / "enough").exists():
            time.sleep(0.01)

    def pid(self) -> int:
        return os.getpid()

    def follow(self) -> Any:
        """Orders, one after the other; one without an answer is for the next attempt."""
        number = len(list(self.folder.glob("answer-*")))
        while True:
            order = self.next_order(number)
            verb = order.pop("do")
            if verb == "finish":
                return order["value"]
            try:
                answer = getattr(self, verb)(**order)
            except Error as refused:
                answer = {"error": type(refused).__name__, "text": str(refused)}
            self.put(f"answer-{number}", json.dumps(answer))
            number += 1

    def next_order(self, number: int) -> dict[str, Any]:
        path = self.folder / f"order-{number}"
        while not path.exists():
            current = slices.current
            if current.wanted is not None:
                self.save(1000, content=current.wanted)
                raise YieldSlice(current.wanted)
            time.sleep(0.01)
        return json.loads(path.read_text())


# On a busy machine a function grows slowly: those that run at once in a test are there from the start.
@app.function(timeout=60, resumable=policy, min_containers=4)
def obey(value: Any = None) -> Any:
    return Hand().follow()


@app.function(timeout=60, resumable=lorry.Resumable(grace=5, keep_every=None, max_attempts=2))
def obey_twice(value: Any = None) -> Any:
    return Hand().follow()


@app.function(timeout=60, resumable=lorry.Resumable(grace=5, keep_every=None, deadline=2))
def obey_until(value: Any = None) -> Any:
    return Hand().follow()


@app.function(timeout=600, resumable=policy)
def obey_long(value: Any = None) -> Any:
    return Hand().follow()


@app.function(timeout=60, resumable=policy)
def echoes(value: bytes) -> bytes:
    Hand().follow()
    return value


@app.function(timeout=60)
def plain() -> str:
    try:
        OneConnection()("run_begin", {})
    except Error as refused:
        return str(refused)
    return ""
