"""Secrets at rest: AES-256-GCM under one key file, each bound to its id."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lorry.errors import InvalidError
from lorry.storage.atomic import full_disk_named, make_folder, sync_folder, temporary_name

KEY_BYTES = 32
NONCE_BYTES = 12
"""Random for each seal. NIST SP 800-38D allows 2³² of them under one key."""
FORMAT = b"\x01"


class SecretBox:
    """Seals and opens. The key never leaves this object, its repr included."""

    __slots__ = ("_cipher", "_fingerprint_key", "_key_file", "_random")

    def __init__(self, key_file: Path, random: Callable[[int], bytes] = os.urandom) -> None:
        """Read the key, or make one. InvalidError if others can read the file or it holds no key."""
        self._key_file = key_file
        self._random = random
        if not key_file.exists():
            _make_key(key_file, random(KEY_BYTES))
        key = _read_key(key_file)
        self._cipher = AESGCM(key)
        self._fingerprint_key = hmac.digest(key, b"lorry fingerprint", "sha256")

    def seal(self, secret_id: str, values: Mapping[str, str]) -> bytes:
        """Format byte, nonce, and the encrypted JSON object with its tag."""
        nonce = self._random(NONCE_BYTES)
        plain = json.dumps(dict(values)).encode()
        return FORMAT + nonce + self._cipher.encrypt(nonce, plain, _bound_to(secret_id))

    def fingerprint(self, content: bytes) -> bytes:
        """32 bytes that tell equal content, and say nothing about it to who lacks the key (HMAC-SHA-256)."""
        return hmac.digest(self._fingerprint_key, content, "sha256")

    def open(self, secret_id: str, sealed: bytes) -> dict[str, str]:
        """What was sealed under this id; InvalidError for another id, another key, or changed bytes."""
        nonce, body = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            if sealed[:1] != FORMAT:
                raise InvalidTag
            # ValueError: too short to hold a nonce.
            plain = self._cipher.decrypt(nonce, body, _bound_to(secret_id))
        except (InvalidTag, ValueError) as error:
            raise InvalidError(
                f"Secret {secret_id} cannot be opened: it was changed on disk, or sealed with another key "
                f"than {self._key_file} holds now. Restore that file, or create the secret again."
            ) from error
        values: dict[str, str] = json.loads(plain)
        return values


def _bound_to(secret_id: str) -> bytes:
    return b"lorry secret " + secret_id.encode()


def _make_key(path: Path, key: bytes) -> None:
    """A whole key or none: written aside and linked into place, which fails if another process was faster."""
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}-{temporary_name()}")
    with full_disk_named(path):
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(key)
                file.flush()
                os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
            sync_folder(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def _read_key(path: Path) -> bytes:
    mode = path.stat().st_mode
    if mode & 0o077:
        raise InvalidError(f"Others can read the key of all secrets (mode {mode & 0o777:o}): chmod 600 {path}")
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise InvalidError(f"{path} has {len(key)} bytes and is not a key of {KEY_BYTES}. Restore it from a backup.")
    return key
