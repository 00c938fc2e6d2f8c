"""What user code raised, ready to travel: frames of the platform left out, size bounded."""

from __future__ import annotations

import os

import lorry
from lorry.runtime.limit_notes import annotate
from lorry.wire import failures
from lorry.wire.codec import to_json

_PLATFORM = os.path.dirname(os.path.abspath(lorry.__file__))


def _of_platform(file: str) -> bool:
    return file.startswith((_PLATFORM, "<frozen importlib"))


def failure_payload(problem: BaseException) -> tuple[bytes, list[memoryview]]:
    """A Failure as JSON, the payload of every result that is not OK."""
    return failure_text(problem).encode(), []


def failure_text(problem: BaseException) -> str:
    annotate(problem)
    return to_json(failures.capture(problem, _of_platform))
