"""The containers of one function, counted: what the rules of the autoscaler reckon with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lorry.scheduler.load import ContainerView, FunctionLoad, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Headcount:
    ready: int
    """Healthy ones only, busy or idle."""
    idle: tuple[ContainerView, ...]
    """The ready ones without an input, longest idle first."""
    starting: int
    total: int
    """Everything that holds a place under `max_containers`."""
    needed: int
    """Containers without an input that the waiting inputs would fill."""
    buffer: int
    """Spare ones wanted on top: `buffer_containers` while the function is active, and one per slice that is about to
    end."""
    newest_start: float

    @property
    def live(self) -> int:
        return self.ready + self.starting

    @property
    def free(self) -> int:
        """Containers that can take (or soon take) a full load of inputs."""
        return len(self.idle) + self.starting

    @property
    def short(self) -> int:
        """Containers that the queue lacks, starting ones counted as there."""
        return max(0, self.needed - self.free)

    def plus(self, start: int) -> Headcount:
        """The count once `start` more are starting."""
        return replace(self, starting=self.starting + start, total=self.total + start)


def headcount(load: FunctionLoad) -> Headcount:
    healthy = [view for view in load.containers if view.healthy]
    ready = [view for view in healthy if view.phase is Phase.READY]
    room = sum(max(0, load.per_container - view.running) for view in ready if view.running)
    active = load.waiting > 0 or load.running > 0
    return Headcount(
        ready=len(ready),
        idle=tuple(sorted((view for view in ready if not view.running), key=idle_since)),
        starting=sum(view.phase is Phase.STARTING for view in healthy),
        total=len(load.containers),
        needed=-(-max(0, load.waiting - room) // load.per_container),
        buffer=(load.scaling.buffer_containers if active else 0) + load.ending,
        newest_start=max((view.started_at for view in load.containers), default=float("-inf")),
    )


def idle_since(view: ContainerView) -> float:
    """Since when a container without inputs has had none."""
    return view.started_at if view.idle_since is None else view.idle_since
