"""Whether a container fits on this machine: now, later or never."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from lorry.model.function import GpuRequest, Resources
from lorry.model.gpu import ANY, matches
from lorry.scheduler.inventory import Gpu, Inventory, Reservation

_HOLDERS_NAMED = 3
_ROUNDING = 1e-9
"""0.2, 0.6 and 0.2 cores fit into one, though the floats leave less than 0.2 beside the first two."""


class Scarce(StrEnum):
    """What stands in the way."""

    GPU = "gpu"
    CPU = "cpu"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """It fits. To be reserved in the same step, with `reserved_for`."""

    gpu_indices: tuple[int, ...] = ()
    gpu_model: str = ""
    """As nvidia-smi prints it; several models are joined by ` + `. Empty without GPUs."""
    cores: float
    memory_mib: int
    sentence: str

    def reserved_for(self, container_id: str) -> Reservation:
        return Reservation(
            container_id=container_id,
            cores=self.cores,
            memory_mib=self.memory_mib,
            gpu_indices=self.gpu_indices,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """It fits when others end. Ask again when a reservation is released."""

    reason: Scarce
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Never:
    """It cannot fit on this machine, even an empty one."""

    reason: Scarce
    sentence: str


def place(inventory: Inventory, reservations: Iterable[Reservation], resources: Resources) -> Placed | Wait | Never:
    """`reservations` are all that are held now. The first GPU alternative that is free is taken."""
    held = tuple(reservations)
    never = _never(inventory, resources)
    if never is not None:
        return never
    wait = _wait_for_cores(inventory, held, resources) or _wait_for_memory(inventory, held, resources)
    if wait is not None:
        return wait
    cards = _free_cards(inventory, held, resources.gpus)
    if cards is None:
        return _wait_for_gpus(inventory, held, resources.gpus)
    names = " + ".join(dict.fromkeys(card.model for card in cards))
    indices = tuple(card.index for card in cards)
    gpus = f" and {_card_list(cards)} (index {_listed(indices)})" if cards else ""
    return Placed(
        gpu_indices=indices,
        gpu_model=names,
        cores=resources.cpu,
        memory_mib=resources.memory,
        sentence=f"Reserved {resources.cpu:g} cores, {resources.memory} MiB of memory{gpus}.",
    )


# --- never ------------------------------------------------------------------------------------------------


def _never(inventory: Inventory, resources: Resources) -> Never | None:
    if resources.cpu > inventory.cores + _ROUNDING:
        sentence = (
            f"cpu={resources.cpu:g} reserves more than the {inventory.cores:g} cores of this machine. "
            "Lower cpu=: it is a reservation, a container may use more than it reserves."
        )
        return Never(reason=Scarce.CPU, sentence=sentence)
    if resources.memory > inventory.memory_mib:
        sentence = (
            f"memory={resources.memory} (MiB) reserves more than the {inventory.memory_mib} MiB that are "
            "installed in this machine. Lower memory=: a container may use more than it reserves."
        )
        return Never(reason=Scarce.MEMORY, sentence=sentence)
    if resources.gpus and not any(_possible(inventory, request) for request in resources.gpus):
        return Never(reason=Scarce.GPU, sentence=_no_such_gpus(inventory, resources.gpus))
    return None


def _possible(inventory: Inventory, request: GpuRequest) -> bool:
    return len(_matching(inventory.gpus, request)) >= request.count


def _no_such_gpus(inventory: Inventory, requests: tuple[GpuRequest, ...]) -> str:
    if not inventory.gpus:
        return f"gpu={_asked(requests)}: this machine has no GPU. Leave gpu= out to run on the CPU."
    head = f"gpu={_asked(requests)}: this machine has {_card_list(inventory.gpus)}."
    if all(request.model == ANY for request in requests):
        return f"{head} Ask for at most {len(inventory.gpus)}."
    return f'{head} gpu="any" takes whatever there is.'


# --- wait -------------------------------------------------------------------------------------------------


def _wait_for_cores(inventory: Inventory, held: tuple[Reservation, ...], resources: Resources) -> Wait | None:
    free = inventory.cores - sum(each.cores for each in held)
    if resources.cpu <= free + _ROUNDING:
        return None
    holders = sorted((each for each in held if each.cores > 0), key=lambda each: -each.cores)
    named = _named([f"{each.container_id} ({each.cores:g})" for each in holders])
    sentence = f"Waits for {resources.cpu:g} cores: {max(free, 0.0):.3g} of {inventory.cores:g} are free; {named}."
    return Wait(reason=Scarce.CPU, sentence=sentence)


def _wait_for_memory(inventory: Inventory, held: tuple[Reservation, ...], resources: Resources) -> Wait | None:
    free = inventory.memory_mib - sum(each.memory_mib for each in held)
    if resources.memory <= free:
        return None
    holders = sorted((each for each in held if each.memory_mib), key=lambda each: -each.memory_mib)
    named = _named([f"{each.container_id} ({each.memory_mib} MiB)" for each in holders])
    sentence = (
        f"Waits for {resources.memory} MiB of memory: {max(free, 0)} of {inventory.memory_mib} are free "
        f"of reservations; {named}."
    )
    return Wait(reason=Scarce.MEMORY, sentence=sentence)


def _wait_for_gpus(inventory: Inventory, held: tuple[Reservation, ...], requests: tuple[GpuRequest, ...]) -> Wait:
    useful = {card.index for request in requests for card in _matching(inventory.gpus, request)}
    taken = {index for each in held for index in each.gpu_indices}
    holders = [each for each in held if useful.intersection(each.gpu_indices)]
    named = _named([f"{each.container_id} (GPU {_listed(each.gpu_indices)})" for each in holders])
    free = f"{len(useful - taken)} of {len(useful)} such cards are free"
    return Wait(reason=Scarce.GPU, sentence=f"Waits for gpu={_asked(requests)}: {free}; {named}.")


# --- cards ------------------------------------------------------------------------------------------------


def _free_cards(
    inventory: Inventory, held: tuple[Reservation, ...], requests: tuple[GpuRequest, ...]
) -> tuple[Gpu, ...] | None:
    """Cards for the first alternative that is free; () if no GPU is asked for; None: all are taken."""
    if not requests:
        return ()
    taken = {index for each in held for index in each.gpu_indices}
    free = tuple(card for card in inventory.gpus if card.index not in taken)
    for request in requests:
        cards = _matching(free, request)
        if len(cards) >= request.count:
            return _chosen(cards, request.count)
    return None


def _matching(cards: Iterable[Gpu], request: GpuRequest) -> tuple[Gpu, ...]:
    return tuple(card for card in cards if matches(request.model, card.model, card.memory_mib))


def _chosen(cards: tuple[Gpu, ...], count: int) -> tuple[Gpu, ...]:
    """The smallest cards that do, so that the large ones stay free for who names them; one model if possible,
    since a group of unequal cards runs at the pace of its slowest."""
    ordered = sorted(cards, key=lambda card: (card.memory_mib, card.model, card.index))
    for model in dict.fromkeys(card.model for card in ordered):
        alike = tuple(card for card in ordered if card.model == model)
        if len(alike) >= count:
            return alike[:count]
    return tuple(ordered[:count])


# --- words ------------------------------------------------------------------------------------------------


def _asked(requests: tuple[GpuRequest, ...]) -> str:
    """The requests as the user would write them."""
    names = [f'"{each.model}:{each.count}"' if each.count > 1 else f'"{each.model}"' for each in requests]
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _card_list(cards: Iterable[Gpu]) -> str:
    """`2 x NVIDIA L4, 1 x Tesla T4`."""
    models = [card.model for card in cards]
    return ", ".join(f"{models.count(model)} x {model}" for model in dict.fromkeys(models))


def _named(holders: list[str]) -> str:
    more = len(holders) - _HOLDERS_NAMED
    rest = f" and {more} more" if more > 0 else ""
    return f"held by {', '.join(holders[:_HOLDERS_NAMED])}{rest}"


def _listed(indices: Iterable[int]) -> str:
    return ", ".join(str(index) for index in indices)
