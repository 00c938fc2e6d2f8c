"""What a worker knows of a container that an earlier one started: its row or note, and its own account of its work."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from lorry.errors import NotFoundError
from lorry.model import selection as sel
from lorry.model.function import FunctionSpec
from lorry.model.records import ContainerRecord, Selection
from lorry.scheduler.dispatch import Work
from lorry.scheduler.inventory import Reservation
from lorry.server.container import Container
from lorry.store.interface import Store
from lorry.wire.codec import from_json, to_json


def note(folder: Path, record: ContainerRecord) -> None:
    """Its row, until the store has that: a commit takes milliseconds, in which its first input may already run. A
    file outlives a worker that is killed, unsynced too; a machine that stops takes the container with it."""
    with contextlib.suppress(OSError):  # a full disk costs at most a second run, should the worker die just now
        (folder / record.container_id).write_text(to_json(record))


def noted(folder: Path) -> list[ContainerRecord]:
    """What `note` wrote and nobody removed."""
    records: list[ContainerRecord] = []
    for path in folder.iterdir():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # torn: the worker died while it wrote
            records.append(from_json(ContainerRecord, path.read_text()))
    return records


def container_of(record: ContainerRecord, spec: FunctionSpec, folder: Path, now: float) -> Container:
    """`now`: monotonic seconds; when it was started by this clock is not known."""
    reserved = json.loads(record.resources)
    return Container(
        container_id=record.container_id,
        app_id=record.app_id,
        target=record.function,
        spec=spec,
        token=record.token,
        folder=folder,
        reservation=Reservation(
            container_id=record.container_id,
            cores=reserved["cores"],
            memory_mib=reserved["memory"],
            gpu_indices=tuple(reserved["gpus"]),
        ),
        gpu_model=reserved["gpu_model"],
        started=now,
        started_wall=record.created_at,
        labels=reserved.get("labels", {}),
    )


def work_of(store: Store, target: int, item: dict[str, Any]) -> Work:
    """One lease of a container's hello. Raises ValueError, TypeError or KeyError for what is none."""
    call = bytes.fromhex(item["call"])
    indices: Selection = tuple((low, high) for low, high in item["indices"])
    work = Work(
        call=call,
        chunk=int(item["chunk"]),
        target=target,
        indices=indices,
        count=sel.count(indices),
        stream=bool(item.get("stream")),
    )
    with contextlib.suppress(NotFoundError):
        # Journaled even when it is over by now: then the dispatcher knows no input of it, and stops it.
        work.batch = store.call(call).kind == "map"
        work.journaled = True
    return work
