"""What a function asks for: code, image, resources, scaling, retries, time limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from lorry.model.image import ImageSpec

NAMED_SECRET = "name:"  # noqa: S105 - a prefix, no password
"""Before a secret's name among `secret_ids`: it is looked up when a container starts, so that a changed one is seen."""
SLICED_START = 300.0
"""Seconds that the start of a resumable function may take at least, unless it says otherwise: an import of torch and
what follows it takes longer than a short slice."""


def _refuse_below(least: float, **numbers: float | None) -> None:
    """ValueError. Whoever sent it: one number of no sense would stop the scheduler's sums for everybody."""
    for name, number in numbers.items():
        if number is not None and not least <= number < math.inf:
            raise ValueError(f"{name}={number!r} must be at least {least:g}, and finite")


class FunctionKind(StrEnum):
    FUNCTION = "function"
    CLASS = "class"
    SANDBOX = "sandbox"
    """No code of ours: a container that runs `FunctionSpec.command`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRequest:
    """One alternative of `gpu=`: `"H100:8"` is model H100, count 8; `"any"` takes whatever there is."""

    model: str
    count: int = 1

    def __post_init__(self) -> None:
        _refuse_below(1, count=self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Requests reserve, limits throttle (cpu) or kill (memory). Memory and disk in MiB, cpu in cores."""

    cpu: float = 0.125
    cpu_limit: float | None = None
    memory: int = 128
    memory_limit: int | None = None
    ephemeral_disk: int | None = None
    gpus: tuple[GpuRequest, ...] = ()
    """Ordered fallbacks; the first that fits is taken. Empty: no GPU."""

    def __post_init__(self) -> None:
        _refuse_below(0, cpu=self.cpu, cpu_limit=self.cpu_limit, memory=self.memory)
        _refuse_below(0, memory_limit=self.memory_limit, ephemeral_disk=self.ephemeral_disk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many containers. `max_containers=None`: only the machine limits."""

    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window: float = 60.0
    """Seconds that a container may be idle before it is stopped."""

    def __post_init__(self) -> None:
        _refuse_below(0, min_containers=self.min_containers, max_containers=self.max_containers)
        _refuse_below(0, buffer_containers=self.buffer_containers, scaledown_window=self.scaledown_window)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Attempt n+1 starts `initial_delay · coefficient^(n-1)` seconds after attempt n failed, at most `max_delay`."""

    max_retries: int = 0
    backoff_coefficient: float = 1.0
    initial_delay: float = 1.0
    max_delay: float = 60.0
    memory_backoff: float = 1.0
    """Containers get so many times the memory once one has passed its limit; 1: they do not."""

    def __post_init__(self) -> None:
        _refuse_below(0, max_retries=self.max_retries, initial_delay=self.initial_delay)
        _refuse_below(1, memory_backoff=self.memory_backoff)
        if not (self.backoff_coefficient >= 0 and self.max_delay >= 0):  # both may be infinite
            raise ValueError(f"{self.backoff_coefficient=} and {self.max_delay=} must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePolicy:
    """Of a resumable function: its inputs are runs, which outlive their attempts. Times in seconds."""

    every: str = "auto"
    """How often to save: worked out, a number of steps ("200"), or a time ("5m")."""
    grace: float = 30.0
    """Between asking an attempt to save and end, and killing it."""
    keep_last: int = 2
    keep_every: float | None = 3600.0
    """Of each so many seconds the first checkpoint is kept too."""
    max_attempts: int = 1000
    deadline: float | None = None
    """For the whole run, from its first attempt on."""

    def __post_init__(self) -> None:
        _refuse_below(0, grace=self.grace, keep_every=self.keep_every, deadline=self.deadline)
        _refuse_below(1, keep_last=self.keep_last, max_attempts=self.max_attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    path: str
    volume_id: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRef:
    """Where the callable is found inside the container."""

    module: str
    qualname: str
    """`function` or `Class`; ignored when `serialized` is set."""
    entry: str | None = None
    """Source-root-relative path of a file that the client ran as `__main__`; it is loaded under `module`."""
    serialized: str | None = None
    """Base64 of a pickled callable, for functions that cannot be imported."""
    python: str | None = None
    """`3.11`: the minor version that `serialized` bytes need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """Everything the platform knows of a function or class. It travels as JSON and is stored as such."""

    tag: str
    """Name inside the app: `train`, or `Model` for a class."""
    kind: FunctionKind
    code: CodeRef
    image: ImageSpec = field(default_factory=ImageSpec)
    source: str = ""
    """Digest of the manifest (JSON [[path, digest, mode], …]) of the files shipped with the code."""
    resources: Resources = field(default_factory=Resources)
    scaling: Scaling = field(default_factory=Scaling)
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float = 300.0
    startup_timeout: float | None = None
    max_concurrent: int = 1
    """Inputs that one container works on at once (`@concurrent(max_inputs=)`)."""
    target_concurrent: int | None = None
    volumes: tuple[VolumeMount, ...] = ()
    secret_ids: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    block_network: bool = False
    single_use: bool = False
    max_inputs: int | None = None
    restrict_access: bool = False
    is_generator: bool = False
    methods: tuple[str, ...] = ()
    generator_methods: tuple[str, ...] = ()
    parameters: str | None = None
    """Base64 of the pickled keyword arguments of a bound class (`Cls(x=1)`); None for the class itself."""
    tags: tuple[tuple[str, str], ...] = ()
    priority: int = 0
    command: tuple[str, ...] = ()
    """The program of a sandbox."""
    resumable: ResumePolicy | None = None
    """Set: `timeout` is the length of one slice, and each container takes one input."""

    def __post_init__(self) -> None:
        _refuse_below(0, timeout=self.timeout, startup_timeout=self.startup_timeout)
        _refuse_below(1, max_concurrent=self.max_concurrent, target_concurrent=self.target_concurrent)
        _refuse_below(1, max_inputs=self.max_inputs)

    @property
    def is_sandbox(self) -> bool:
        return self.kind is FunctionKind.SANDBOX

    @property
    def effective_startup_timeout(self) -> float:
        """`startup_timeout`, by default the function's own `timeout`. A short slice is no reason for a short start."""
        if self.startup_timeout is not None:
            return self.startup_timeout
        return self.timeout if self.resumable is None else max(self.timeout, SLICED_START)
