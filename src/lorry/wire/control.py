"""Control messages: JSON requests, replies and events, split over frames when they are long.

Pure: `encode` gives frames, `Assembler.feed` takes them. Requests carry `{"method", "params"}`, a failed reply
carries `{"error", "message"}` with the class name of `lorry.errors`.
"""

from __future__ import annotations

import json
from typing import Any

from lorry import errors
from lorry.wire.frames import HEADER_SIZE, MAX_FRAME, Flag, Kind, pack

BODY = MAX_FRAME - HEADER_SIZE
MAX_MESSAGE = 64 * 1024 * 1024
"""A control message above this is refused: no honest client sends one (files travel in blob chunks)."""


def encode(kind: int, number: int, value: Any, *, status: int = 0) -> list[bytes]:
    """Frames of one control message."""
    text = json.dumps(value, separators=(",", ":")).encode()
    parts = [text[i : i + BODY] for i in range(0, len(text), BODY)] or [b""]
    last = len(parts) - 1
    return [
        pack(kind, flags=Flag.MORE if i < last else 0, status=status, number=number) + part
        for i, part in enumerate(parts)
    ]


def encode_error(number: int, problem: BaseException) -> list[bytes]:
    """A failed reply. Errors that are not Lorry's own become InternalError."""
    name = type(problem).__name__
    message = str(problem)
    if not isinstance(problem, errors.Error):
        message, name = f"{name}: {problem}", "InternalError"
    return encode(Kind.REPLY, number, {"error": name, "message": message}, status=1)


def raise_error(body: Any) -> None:
    """Raise the error that a failed reply carries."""
    cls = errors.BY_NAME.get(body.get("error", ""), errors.Error)
    raise cls(body.get("message", "the server gave no reason"))


class Assembler:
    """Puts control messages together again, per (kind, number). `limit`: bytes of all unfinished ones together."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._parts: dict[tuple[int, int], bytearray] = {}
        self._size = 0
        self.limit = limit

    def feed(self, kind: int, flags: int, number: int, body: bytes | memoryview) -> Any | None:
        """The message when it is complete, else None. ValueError when it is not JSON or too long."""
        key = (kind, number)
        parts = self._parts.get(key)
        if parts is None and not flags & Flag.MORE:
            return _parse(bytes(body))
        parts = self._parts.setdefault(key, bytearray())
        parts += body
        self._size += len(body)
        if self._size > self.limit or len(self._parts) > 64:
            raise ValueError(f"control messages pass {self.limit} bytes or too many are unfinished")
        if flags & Flag.MORE:
            return None
        del self._parts[key]
        self._size -= len(parts)
        return _parse(bytes(parts))


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("a control message nests too deep") from None
