"""The rows of the state: apps, functions, calls, chunks, results, containers, volumes, secrets, usage, decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

Selection = tuple[tuple[int, int], ...]
"""Indices of inputs inside a chunk as sorted half-open ranges: ((0, 10), (12, 13)) = 0…9 and 12."""


class AppState(StrEnum):
    EPHEMERAL = "ephemeral"
    """Runs as long as its client process lives."""
    DETACHED = "detached"
    """`lorry run --detach`: runs until its calls are done or it is stopped."""
    DEPLOYED = "deployed"
    STOPPED = "stopped"


class CallKind(StrEnum):
    SPAWN = "spawn"
    MAP = "map"


class CallState(StrEnum):
    OPEN = "open"
    """More inputs may come."""
    CLOSED = "closed"
    """All inputs are here, some without a result."""
    DONE = "done"
    CANCELLED = "cancelled"


class Status(IntEnum):
    """How one input ended. On the wire as one byte."""

    OK = 0
    ERROR = 1
    """User code raised; the payload is the exception."""
    TIMEOUT = 2
    CANCELLED = 3
    LOST = 4
    """Container died under it too often; payload is an error text."""
    PLATFORM = 5
    """The platform refused or could not run it; payload is an error text (class name, message)."""
    YIELD = 6
    """One value of a generator; not an end."""
    DONE = 7
    """A generator's end."""
    CONTINUE = 8
    """A run's slice is over and its state is committed: the input is queued again; no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRecord:
    app_id: str
    name: str
    state: AppState
    created_at: float
    stopped_at: float | None = None
    client_pid: int | None = None
    client_started: float | None = None
    """Start time of the client process (clock ticks since boot): with the pid it names one process for ever."""
    version: int = 0
    """1, 2, 3 … for deployments of one name; 0 for ephemeral apps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRecord:
    number: int
    """Stable integer that frames carry as their target."""
    app_id: str
    tag: str
    spec: str
    """FunctionSpec as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    call: bytes
    """16 bytes, made by the client."""
    app_id: str
    function: int
    kind: CallKind
    state: CallState
    created_at: float
    inputs: int = 0
    finished: int = 0
    parent: bytes | None = None
    finished_at: float | None = None
    keep_results: bool = True
    """False for `.map`: its results go as soon as the client has acknowledged them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRecord:
    """Inputs that travel, wait and are journaled together."""

    call: bytes
    chunk: int
    inputs: int
    payload: bytes
    """A wire payload; opaque to the server."""
    done: Selection = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRecord:
    """The outcome of some inputs of one chunk that ended alike."""

    call: bytes
    chunk: int
    indices: Selection
    status: Status
    payload: bytes
    finished_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    container_id: str
    app_id: str
    function: int
    token: str
    pid: int
    """Host pid of the sandbox's first process."""
    pid_started: int
    state: str
    created_at: float
    resources: str
    """What was reserved for it, as JSON (cores, MiB, GPU indices)."""
    stopped_at: float | None = None
    reason: str = ""
    peak_memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    volume_id: str
    name: str | None
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRecord:
    secret_id: str
    name: str | None
    keys: tuple[str, ...]
    sealed: bytes
    """AES-GCM of the JSON object, bound to the id."""
    created_at: float
    used_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """Container seconds times resources, written when a container ends and every minute while it lives."""

    container_id: str
    app_id: str
    function: int
    started_at: float
    ended_at: float
    cores: float
    memory_mib: int
    gpu_model: str
    gpus: int
    cpu_seconds: float
    peak_memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """Why something was started, stopped, refused or left waiting."""

    at: float
    subject: str
    """App, function or container id."""
    kind: str
    reason: str
