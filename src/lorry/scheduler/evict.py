"""Which idle containers make room for inputs that wait: an idle one is worth less than a waiting input.

Without this, a function whose place is reserved by others' idle containers would wait for their
`scaledown_window`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorry.model.function import Resources
from lorry.scheduler.inventory import Inventory, Reservation
from lorry.scheduler.place import Placed, place


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleContainer:
    """One that has no input and is above its function's `min_containers`."""

    container_id: str
    idle_since: float


def choose(
    inventory: Inventory,
    reservations: Sequence[Reservation],
    resources: Resources,
    idle: Iterable[IdleContainer],
) -> tuple[str, ...]:
    """The containers to stop so that `resources` fit, the longest idle first. None if they fit, or never will."""
    if isinstance(place(inventory, reservations, resources), Placed):
        return ()
    gone: list[str] = []
    left = list(reservations)
    for container in sorted(idle, key=lambda c: c.idle_since):
        gone.append(container.container_id)
        left = [r for r in left if r.container_id != container.container_id]
        if isinstance(place(inventory, left, resources), Placed):
            return _needed(inventory, reservations, resources, gone)
    return ()


def _needed(
    inventory: Inventory, reservations: Sequence[Reservation], resources: Resources, gone: list[str]
) -> tuple[str, ...]:
    """Spare those that turn out not to help: a card is not freed by stopping containers without one."""
    needed = list(gone)
    for candidate in gone[:-1]:
        fewer = [c for c in needed if c != candidate]
        left = [r for r in reservations if r.container_id not in fewer]
        if isinstance(place(inventory, left, resources), Placed):
            needed = fewer
    return tuple(needed)
