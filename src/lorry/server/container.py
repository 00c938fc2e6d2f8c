"""One container as the worker sees it: identity, state, connection, output, accounting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorry.lifecycle.container import ContainerEvent, ContainerState, container_machine
from lorry.lifecycle.machine import Machine
from lorry.model.coldstart import Clockwork, ColdStart
from lorry.model.function import FunctionSpec
from lorry.model.records import ContainerRecord, UsageRecord
from lorry.sandbox.interface import Exit, SandboxProcess, SandboxSpec
from lorry.scheduler.inventory import Reservation
from lorry.scheduler.load import PHASE_OF, ContainerView
from lorry.server.logs import OutputPump
from lorry.server.peers import Peer


@dataclass(slots=True, eq=False)
class Container:
    container_id: str
    app_id: str
    target: int
    spec: FunctionSpec
    token: str
    folder: Path
    reservation: Reservation
    gpu_model: str
    started: float
    """Monotonic; when it was asked for."""
    started_wall: float
    machine: Machine[ContainerState, ContainerEvent] = field(init=False)
    process: SandboxProcess | None = None
    peer: Peer | None = None
    runner_pid: int = 0
    """Host pid of the program itself: SO_PEERCRED of its connection."""
    pump: OutputPump | None = None
    current_call: bytes | None = None
    """The call that it works on, or worked on last; None before the first, or with several at once."""
    reason: str = ""
    """Why it was stopped or killed, when the platform did it."""
    guilty: bool = False
    """It was killed for what its own input did."""
    charge: bool = True
    """False when it was killed for the sake of another input: its inputs run again off their budget."""
    peak_memory: int = 0
    over_memory: bool = False
    """The watchdog killed it for its memory limit."""
    scratch: int = 0
    """MiB in its home and /tmp when the watchdog killed it for them; 0: it did not."""
    hidden: tuple[str, ...] = ()
    """Secret values that are blacked out in its output."""
    cold: str = ""
    """Why it was not forked from a template; empty if it was."""
    stages: Clockwork = field(init=False)
    """Of its start."""
    imports: tuple[tuple[str, float], ...] = ()
    """The slowest packages of the import that it had to wait for."""
    ready_at: float | None = None
    """Monotonic; until its first result."""
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is stopped before it has a process."""
    described: SandboxSpec | None = None
    """What it was started as, if this worker started it."""
    up: asyncio.Event = field(default_factory=asyncio.Event)
    """Of a sandbox: set when its program is executed, or will never be."""
    code: int | None = None
    """Exit code of a sandbox that has ended."""
    labels: dict[str, str] = field(default_factory=dict)
    """Tags of a sandbox."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    """Cancelled when it has ended: until then each of them holds all this."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it has ended and is accounted for."""

    def __post_init__(self) -> None:
        self.machine = container_machine(self.container_id)
        self.stages = Clockwork(self.started)

    @property
    def state(self) -> ContainerState:
        return self.machine.state

    @property
    def over_limit(self) -> bool:
        """The watchdog killed it: for a limit of its own, which is the same the next time."""
        return self.over_memory or self.scratch > 0

    @property
    def scratch_text(self) -> str:
        """Empty unless it was killed for its disk."""
        if not self.scratch:
            return ""
        return (
            f"the container of {self.spec.tag} had {self.scratch} MiB in its home and /tmp, more than "
            f"ephemeral_disk={self.spec.resources.ephemeral_disk}. Raise that, delete what is not needed any more, or "
            "write to a Volume, which has no limit"
        )

    @property
    def alive(self) -> bool:
        return self.machine.state is not ContainerState.DEAD

    def view(self, running: int, idle_since: float | None) -> ContainerView | None:
        phase = PHASE_OF[self.state]
        if phase is None:
            return None
        return ContainerView(
            container_id=self.container_id,
            phase=phase,
            running=running,
            idle_since=idle_since,
            started_at=self.started,
        )

    def boot(self, told: dict[str, Any]) -> None:
        """What an import, here or in a template, says of itself. ValueError or TypeError if it is nonsense."""
        for stage in ("import", "enter"):
            self.stages.add(stage, float(told.get(stage, 0.0)))
        if told.get("imports"):
            self.imports = tuple((str(name)[:80], float(seconds)) for name, seconds in told["imports"][:5])

    def cold_start(self) -> ColdStart:
        return ColdStart(
            function=self.spec.tag,
            started_at=self.started_wall,
            seconds=self.stages.seconds,
            cold=self.cold,
            imports=self.imports,
        )

    def redacted(self, lines: list[str]) -> list[str]:
        """Lines of its output without the values of its secrets."""
        return redacted(lines, self.hidden)

    def nudge(self) -> None:
        """SIGUSR1 to the program, if it is known."""
        if self.runner_pid:
            try:
                os.kill(self.runner_pid, signal.SIGUSR1)
            except ProcessLookupError:
                self.runner_pid = 0

    def record(self, stopped_at: float | None = None) -> ContainerRecord:
        resources = {
            "cores": self.reservation.cores,
            "memory": self.reservation.memory_mib,
            "gpus": list(self.reservation.gpu_indices),
            "gpu_model": self.gpu_model,
            "memory_limit": self.spec.resources.memory_limit,
        }
        if self.spec.is_sandbox:
            resources |= {"code": self.code, "labels": self.labels}
        return ContainerRecord(
            container_id=self.container_id,
            app_id=self.app_id,
            function=self.target,
            token=self.token,
            pid=self.process.pid if self.process else 0,
            pid_started=self.process.pid_started if self.process else 0,
            state=self.state.value,
            created_at=self.started_wall,
            resources=json.dumps(resources),
            stopped_at=stopped_at,
            reason=self.reason,
            peak_memory=self.peak_memory,
        )

    def usage(self, now_wall: float) -> UsageRecord:
        """What it has used since its start; rows replace each other by (container, start)."""
        usage = self.process.usage() if self.process else None
        if usage is not None:
            self.peak_memory = max(self.peak_memory, usage.peak_memory)
        return UsageRecord(
            container_id=self.container_id,
            app_id=self.app_id,
            function=self.target,
            started_at=self.started_wall,
            ended_at=now_wall,
            cores=self.reservation.cores,
            memory_mib=self.reservation.memory_mib,
            gpu_model=self.gpu_model,
            gpus=len(self.reservation.gpu_indices),
            cpu_seconds=usage.cpu_seconds if usage else 0.0,
            peak_memory_mib=self.peak_memory,
        )


def death_text(container: Container, ended: Exit, sentence: str, story: str = "") -> str:
    """For the inputs that it had, as `Class: message` where the class is not ContainerLostError. `story`: what
    `memory_backoff` tried."""
    limit = container.spec.resources.memory_limit
    if container.scratch:
        return f"ResourceError: {container.scratch_text}"
    if ended.oom_killed and limit is not None:
        return (
            f"OutOfMemoryError: the container passed its memory limit of {limit} MiB (peak "
            f"{container.peak_memory} MiB). Raise it with memory=({container.spec.resources.memory}, …) "
            f"on the function, or load less at once{story}"
        )
    if ended.oom_killed:
        return (
            f"OutOfMemoryError: the machine ran out of memory, and the container of {container.spec.tag} was killed "
            f"(peak {container.peak_memory} MiB). Reserve what it needs with memory=, so that fewer run at once"
        )
    return f"the container of {container.spec.tag} died: {sentence}"


def children_of(pid: int) -> list[int]:
    """Host pids of a process's children (proc(5), children); empty when it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def redacted(lines: list[str], hidden: tuple[str, ...]) -> list[str]:
    """Lines without these values."""
    for value in hidden:
        lines = [line.replace(value, "***") for line in lines]
    return lines
