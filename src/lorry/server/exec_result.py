"""How a sandbox ended, as its row keeps it."""

from __future__ import annotations

import dataclasses
import json

from lorry.model.records import ContainerRecord
from lorry.sandbox.interface import SIGNAL_BASE, Exit

KILLED = SIGNAL_BASE + 9
"""Exit code of what left no account of its end: only a SIGKILL of everything in it prevents one."""


def with_code(record: ContainerRecord, seen: Exit | None) -> ContainerRecord:
    """The row of a container that ended while no server was there, with the exit code that it left."""
    kept = json.loads(record.resources)
    if "code" not in kept:  # none of a sandbox
        return record
    kept["code"] = seen.code if seen else KILLED
    return dataclasses.replace(record, resources=json.dumps(kept))


def code_of(record: ContainerRecord) -> int | None:
    """None: it has not ended, or is no sandbox."""
    if record.stopped_at is None:
        return None
    code = json.loads(record.resources).get("code", KILLED)
    return KILLED if code is None else int(code)
