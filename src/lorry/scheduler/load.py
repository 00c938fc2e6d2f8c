"""What the autoscaler looks at, and what it answers: facts in, one decision out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lorry.lifecycle.container import ContainerState
from lorry.model.function import Scaling


class Phase(StrEnum):
    """A container as the autoscaler sees it. All four hold a place under `max_containers`."""

    STARTING = "starting"
    """Will take inputs soon."""
    READY = "ready"
    DRAINING = "draining"
    """Takes no new inputs."""
    STOPPING = "stopping"
    """Told to go already; never named in a decision again."""


PHASE_OF: dict[ContainerState, Phase | None] = {
    ContainerState.STARTING: Phase.STARTING,
    ContainerState.BOOTING: Phase.STARTING,
    ContainerState.READY: Phase.READY,
    ContainerState.DRAINING: Phase.DRAINING,
    # It may come back busy or not at all: no capacity to count on, but its place is taken.
    ContainerState.LOST_CONTACT: Phase.DRAINING,
    ContainerState.STOPPING: Phase.STOPPING,
    ContainerState.DEAD: None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    container_id: str
    phase: Phase
    running: int = 0
    """Inputs that it works on."""
    idle_since: float | None = None
    """When it finished its last input; None while it is busy. None and not busy: idle since `started_at`."""
    started_at: float
    """When it was asked for, not when it became ready."""
    healthy: bool = True
    """False: it answers no more. It is no capacity, and goes as soon as no input depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionLoad:
    """One function (or one set of parameters of a class) at one moment. All times are monotonic seconds."""

    scaling: Scaling = field(default_factory=Scaling)
    waiting: int = 0
    """Inputs that no container has; those that wait for a retry's delay are not among them."""
    running: int = 0
    runs: bool = False
    """Its inputs are runs: what waits for one to be done waits for hours."""
    ending: int = 0
    """Slices of runs that are about to end: the next one of each needs a container."""
    backlog_since: float | None = None
    """Since when inputs have waited at every look. Not the age of one input: a queue that never empties is more work
    than the containers do, however shortly each input waits. None: unknown, and no queue is taken for short."""
    max_concurrent: int = 1
    target_concurrent: int | None = None
    containers: tuple[ContainerView, ...] = ()
    app_alive: bool = True
    failed_starts: int = 0
    """Failed starts in a row; containers that were asked for together and failed together count once."""
    last_failed_start: float | None = None
    measured_peak_memory: int | None = None
    """MiB: the highest peak of this function's containers, once one has run."""
    memory_request: int = 128
    """MiB: `Resources.memory`, used until a peak is measured."""
    mean_input_seconds: float | None = None

    @property
    def per_container(self) -> int:
        """Inputs that a container is meant to have; the dispatcher may go up to `max_concurrent`."""
        return max(1, min(self.target_concurrent or self.max_concurrent, self.max_concurrent))

    @property
    def container_memory(self) -> int:
        """MiB that one more container is expected to take."""
        return max(1, self.measured_peak_memory or self.memory_request)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLoad:
    """The machine as measured. Who decides for several functions in one round passes each the memory that
    the starts before it left over."""

    cores: float
    cpu_idle_fraction: float
    """0…1, measured over about a second."""
    memory_free: int
    """MiB available without swapping."""
    memory_total: int
    disk_free_fraction: float = 1.0

    @property
    def whole_cores(self) -> int:
        return max(1, int(self.cores))


class Reason(StrEnum):
    ENOUGH = "enough"
    """There are as many containers as the load needs."""
    COLD_QUEUE = "cold_queue"
    QUEUE_GROWTH = "queue_growth"
    FLOOR = "floor"
    BUFFER = "buffer"
    IDLE = "idle"
    UNHEALTHY = "unhealthy"
    APP_STOPPED = "app_stopped"
    # Why nothing was started although inputs wait or the floor is not reached:
    MAX_CONTAINERS = "max_containers"
    CPU_BUSY = "cpu_busy"
    MEMORY_FULL = "memory_full"
    DISK_FULL = "disk_full"
    BACKING_OFF = "backing_off"
    STILL_STARTING = "still_starting"
    MEASURING = "measuring"
    """The last growth is too young to show in the measured CPU."""
    SHORT_QUEUE = "short_queue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    start: int
    stop: tuple[str, ...] = ()
    """Container ids, in the order in which they go."""
    reason: Reason
    sentence: str
    wake_at: float | None = None
    """Ask again then if no event (input, result, container) came before. None: only an event changes it."""
