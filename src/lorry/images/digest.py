"""The name of an environment: same digest, same packages on the same Python.

`env`, `workdir` and `files` of an image are applied when a container starts, so they are not part of it;
neither are index settings of the client, nor any credential.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from lorry.images.credentials import without_credentials
from lorry.images.interpreter import Interpreter
from lorry.model.image import ImageBase, ImageSpec, PipInstall

FORMAT = 1
"""Raised when the way environments are built changes, so that old ones are built anew."""
DIGITS = 32
"""128 bits. It is part of every script's `#!` line, whose length the kernel limits."""


def environment_digest(spec: ImageSpec, interpreter: Interpreter) -> str:
    """`DIGITS` hex digits. The order of installs counts: a later one may replace what came before."""
    content: dict[str, object] = {
        "format": FORMAT,
        "base": spec.base.value,
        "interpreter": interpreter.identity(),
        "installs": [install_content(install) for install in spec.installs],
    }
    if spec.base is ImageBase.HOST:
        content["host"] = [interpreter.prefix, interpreter.environment_stamp()]
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def install_content(install: PipInstall) -> dict[str, object]:
    """What decides the content of one layer, without credentials."""
    return {name: _clean(value) for name, value in asdict(install).items()}


def _clean(value: object) -> object:
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, tuple):
        return [_clean(item) for item in value]
    return value
