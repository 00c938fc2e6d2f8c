"""The simulated world's memory: what is on disk, and what really happened to each input.

`Facts` judges: it counts what user code did, apart from the dispatcher, and raises `Broken` when an outcome does
not follow from that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lorry.model.function import ResumePolicy, RetryPolicy, Scaling
from lorry.model.records import Status
from lorry.scheduler.outcomes import MAX_DEATHS
from lorry.scheduler.slices import MOST_FRUITLESS

ALWAYS = 99
Place = tuple[bytes, int, int]
"""(call, chunk, index)"""


class Broken(AssertionError):
    """A promise was not kept."""


@dataclass(slots=True, kw_only=True)
class Function:
    target: int
    policy: RetryPolicy
    timeout: float
    capacity: int
    max_inputs: int | None
    scaling: Scaling
    bad_starts: int
    """So many of its first containers fail to start."""
    resumable: ResumePolicy | None = None


@dataclass(slots=True, kw_only=True)
class Input:
    """One input: what its code is going to do, and what has become of it."""

    function: Function
    seconds: float = 0.1
    kills: int = 0
    """Its first executions kill their container."""
    hangs: int = 0
    """The next ones never end."""
    stubborn: bool = False
    """A hang ignores the request to stop."""
    fails: int = 0
    """The next ones raise."""
    slices: int = 0
    """Of a run: the next ones end before it is done."""
    commits: int = 0
    """Of a run: its first executions move its checkpoint before they end, however they do."""
    barren: int = 0
    """Of a run: leases since the server heard of a checkpoint."""
    stream: bool = False
    yields: int = 0
    runs: int = 0
    failures: int = 0
    asks: int = 0
    """How often the server said that its time was over."""
    deaths: int = 0
    deaths_alone: int = 0
    excuses: int = 0
    """Infrastructure failures: each may have cost an execution."""
    yielded: bool = False
    cancelled: bool = False
    acknowledged: bool = False
    held_by: str | None = None
    """The container that has it and has not reported it."""
    outcome: Status | None = None
    life: int = -1
    """The server's life in which its outcome was delivered (not yet durable)."""

    def act(self) -> str:
        """User code begins. What will it do?"""
        self.runs += 1
        retries = self.function.policy.max_retries
        if self.function.resumable is not None:
            if self.barren > MOST_FRUITLESS + self.excuses + self.deaths:
                raise Broken(f"{self.barren} leases without a checkpoint: {self.excuses} excuses")
        elif self.runs > (1 + retries) * (1 + self.excuses) + self.deaths:
            raise Broken(f"executed {self.runs} times: {retries} retries, {self.excuses} excuses, {self.deaths} deaths")
        if self.kills:
            self.kills -= self.kills != ALWAYS
            return "kill"
        if self.hangs:
            self.hangs -= self.hangs != ALWAYS
            return "hang"
        if self.fails:
            self.fails -= self.fails != ALWAYS
            return "fail"
        if self.slices:
            self.slices -= self.slices != ALWAYS
            return "slice"
        return "ok"


@dataclass(slots=True)
class Facts:
    inputs: dict[Place, Input] = field(default_factory=dict)
    unresolved: int = 0
    failed_starts: dict[int, int] = field(default_factory=dict)
    outcomes: dict[Status, int] = field(default_factory=dict)
    continued: int = 0
    """Slices of runs that were followed by another one."""

    def add(self, place: Place, made: Input) -> None:
        self.inputs[place] = made
        self.unresolved += 1

    def deliver(self, place: Place, status: Status, life: int) -> None:
        """The dispatcher says that this is the outcome. One per life of the server, and a plausible one."""
        made = self.inputs[place]
        if made.life == life:
            raise Broken(f"{name(place)} was delivered twice, now as {status.name}")
        if made.outcome is not None and (made.outcome, status) != (Status.CANCELLED, Status.CANCELLED):
            raise Broken(f"{name(place)} had an outcome ({made.outcome.name}) and got another one ({status.name})")
        made.life = life
        problem = self._problem(made, status)
        if problem:
            raise Broken(f"{name(place)} ended as {status.name}: {problem}")

    def _problem(self, made: Input, status: Status) -> str:
        if made.function.resumable is not None and status in (Status.ERROR, Status.TIMEOUT, Status.LOST):
            few = made.barren < MOST_FRUITLESS
            return f"it had {made.barren} leases since its last checkpoint" if few else ""
        used = made.failures + made.asks
        if status in (Status.ERROR, Status.TIMEOUT) and not made.yielded and used <= made.function.policy.max_retries:
            return f"user code failed {used} times only, {made.function.policy.max_retries} retries"
        if status is Status.TIMEOUT and not made.asks:
            return "nobody said that its time was over"
        if status is Status.LOST and not made.yielded and made.deaths_alone < MAX_DEATHS:
            return f"it was alone in {made.deaths_alone} dying containers only"
        if status is Status.CANCELLED and not made.cancelled:
            return "nobody cancelled it"
        if status is Status.PLATFORM and not self.failed_starts.get(made.function.target):
            return "no container failed to start"
        return ""

    def settle(self, place: Place, status: Status) -> None:
        """It is on disk, or its client has it."""
        made = self.inputs[place]
        if made.outcome is not None:
            raise Broken(f"{name(place)} has two recorded outcomes")
        made.outcome = status
        self.unresolved -= 1
        self.outcomes[status] = self.outcomes.get(status, 0) + 1


@dataclass(slots=True, kw_only=True)
class Chunk:
    call: bytes
    number: int
    function: Function
    size: int
    batch: bool
    done: set[int] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Disk:
    """What was committed. Survives every crash."""

    chunks: dict[tuple[bytes, int], Chunk] = field(default_factory=dict)
    cancelled: set[bytes] = field(default_factory=set)
    containers: set[str] = field(default_factory=set)

    def record(self, call: bytes, number: int, indices: set[int]) -> bool:
        """Refused as a whole if one of them is recorded already, as the schema does it."""
        chunk = self.chunks[call, number]
        if call in self.cancelled or indices & chunk.done:
            return False
        chunk.done |= indices
        return True


def name(place: Place) -> str:
    call, chunk, index = place
    return f"{int.from_bytes(call, 'big')}/{chunk}/{index}"
