"""Ids are 128 random bits behind a prefix that says what they name: `ap-`, `fc-`, `ct-`, `sb-`, `ex-`, `vo-`, `se-`,
`im-`."""

from __future__ import annotations

import os

CALL_BYTES = 16


def new_id(prefix: str, random: bytes | None = None) -> str:
    """A fresh id such as `ap-3f2a…` (prefix and 32 hex digits). `random`: 16 bytes, for deterministic tests."""
    return f"{prefix}-{(random or os.urandom(16)).hex()}"


def call_name(raw: bytes) -> str:
    """The text form of a call's 16 raw bytes."""
    return f"fc-{raw.hex()}"


def call_bytes(name: str) -> bytes:
    """The 16 raw bytes of a call id. Raises ValueError if `name` is not one."""
    prefix, _, digits = name.partition("-")
    raw = bytes.fromhex(digits)
    if prefix != "fc" or len(raw) != CALL_BYTES:
        raise ValueError(f"{name!r} is not a call id (fc- and 32 hex digits)")
    return raw
