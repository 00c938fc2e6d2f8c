"""Records with the fields that a test does not care about filled in, and a way to wait for one write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from lorry.model.records import (
    AppRecord,
    AppState,
    CallKind,
    CallRecord,
    CallState,
    ChunkRecord,
    ContainerRecord,
    DecisionRecord,
    ResultRecord,
    SecretRecord,
    Selection,
    Status,
    UsageRecord,
    VolumeRecord,
)
from lorry.model.run import RunRecord, RunState
from lorry.store.interface import Store

T = TypeVar("T")
P = ParamSpec("P")


def wait(verb: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    async def one() -> T:
        return await verb(*args, **kwargs)

    return asyncio.run(one())


def call_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def app(number: int = 1, **changes: Any) -> AppRecord:
    fields = {
        "app_id": f"ap-{number}",
        "name": "train",
        "state": AppState.EPHEMERAL,
        "created_at": 100.0 + number,
    }
    return AppRecord(**fields | changes)


def call(number: int = 1, **changes: Any) -> CallRecord:
    fields = {
        "call": call_id(number),
        "app_id": "ap-1",
        "function": 1,
        "kind": CallKind.MAP,
        "state": CallState.OPEN,
        "created_at": 100.0 + number,
        "keep_results": False,
    }
    return CallRecord(**fields | changes)


def chunk(call: int = 1, number: int = 0, inputs: int = 4, payload: bytes = b"in") -> ChunkRecord:
    return ChunkRecord(call=call_id(call), chunk=number, inputs=inputs, payload=payload)


def result(
    call: int = 1,
    number: int = 0,
    indices: Selection = ((0, 4),),
    status: Status = Status.OK,
    payload: bytes = b"out",
    at: float = 200.0,
) -> ResultRecord:
    return ResultRecord(
        call=call_id(call), chunk=number, indices=indices, status=status, payload=payload, finished_at=at
    )


def container(number: int = 1, **changes: Any) -> ContainerRecord:
    fields = {
        "container_id": f"ct-{number}",
        "app_id": "ap-1",
        "function": 1,
        "token": "t",
        "pid": 10,
        "pid_started": 20,
        "state": "running",
        "created_at": 100.0 + number,
        "resources": "{}",
    }
    return ContainerRecord(**fields | changes)


def usage(container: int = 1, started_at: float = 100.0, **changes: Any) -> UsageRecord:
    fields = {
        "container_id": f"ct-{container}",
        "app_id": "ap-1",
        "function": 1,
        "started_at": started_at,
        "ended_at": started_at + 60,
        "cores": 0.5,
        "memory_mib": 128,
        "gpu_model": "",
        "gpus": 0,
        "cpu_seconds": 3.5,
        "peak_memory_mib": 64,
    }
    return UsageRecord(**fields | changes)


def decision(at: float, subject: str = "ap-1", reason: str = "two calls wait") -> DecisionRecord:
    return DecisionRecord(at=at, subject=subject, kind="scale", reason=reason)


def volume(number: int = 1, name: str | None = "corpus") -> VolumeRecord:
    return VolumeRecord(volume_id=f"vo-{number}", name=name, created_at=100.0 + number)


def secret(number: int = 1, name: str | None = "hf", **changes: Any) -> SecretRecord:
    fields = {
        "secret_id": f"se-{number}",
        "name": name,
        "keys": ("A", "B"),
        "sealed": b"s",
        "created_at": 1.0,
    }
    return SecretRecord(**fields | changes)


def run(number: int = 1, chunk: int = 0, **changes: Any) -> RunRecord:
    fields = {
        "run_id": f"ru-{number}",
        "app_id": "ap-1",
        "app_name": "train",
        "tag": "f",
        "function": 1,
        "call": call_id(number),
        "chunk": chunk,
        "state": RunState.RUNNING,
        "created_at": 100.0 + number,
        "since": 100.0 + number,
        "folder": f"train/f/ru-{number}",
    }
    return RunRecord(**fields | changes)


def journal(store: Store, *, inputs: int = 4, chunks: int = 1, number: int = 1) -> None:
    """An open `.map` call with chunks."""
    assert wait(store.open_call, call(number))
    for position in range(chunks):
        assert wait(store.accept_chunk, chunk(number, position, inputs))


def spawned(store: Store, number: int = 1, inputs: int = 1) -> None:
    record = call(number, kind=CallKind.SPAWN, keep_results=True)
    assert wait(store.accept_spawn, record, chunk(number, 0, inputs))


def open_chunks(store: Store) -> list[tuple[bytes, int]]:
    return [(record.call, number) for record, number, *_ in store.unfinished()]
