"""Making room: the longest idle first, no more than needed, nothing when it would not help."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lorry.model.function import GpuRequest, Resources
from lorry.scheduler import evict
from lorry.scheduler.evict import IdleContainer
from lorry.scheduler.inventory import Gpu, Inventory, Reservation
from lorry.scheduler.place import Placed, place

MACHINE = Inventory(cores=2.0, memory_mib=8192, gpus=(Gpu(index=0, model="NVIDIA L4", memory_mib=23034),))


def held(name: str, cores: float = 1.0, gpus: tuple[int, ...] = ()) -> Reservation:
    return Reservation(container_id=name, cores=cores, memory_mib=128, gpu_indices=gpus)


def idle(name: str, since: float) -> IdleContainer:
    return IdleContainer(container_id=name, idle_since=since)


def test_the_longest_idle_container_goes() -> None:
    chosen = evict.choose(MACHINE, [held("a"), held("b")], Resources(cpu=1), [idle("a", 5.0), idle("b", 2.0)])
    assert chosen == ("b",)


def test_containers_that_do_not_help_are_spared() -> None:
    wants_card = Resources(gpus=(GpuRequest(model="L4"),))
    reservations = [held("old", 0.125), held("card", 0.125, (0,))]
    assert evict.choose(MACHINE, reservations, wants_card, [idle("old", 1.0), idle("card", 9.0)]) == ("card",)


def test_nothing_goes_when_it_would_not_be_enough() -> None:
    assert evict.choose(MACHINE, [held("busy"), held("a")], Resources(cpu=2), [idle("a", 1.0)]) == ()


@given(
    st.lists(st.floats(0.125, 2), max_size=6),
    st.floats(0.125, 2),
)
def test_what_is_chosen_makes_room_and_nothing_in_it_is_superfluous(cores: list[float], wanted: float) -> None:
    reservations = [held(str(i), c) for i, c in enumerate(cores)]
    resources = Resources(cpu=wanted)
    chosen = evict.choose(MACHINE, reservations, resources, [idle(str(i), i) for i in range(len(cores))])
    left = [r for r in reservations if r.container_id not in chosen]
    if chosen:
        assert isinstance(place(MACHINE, left, resources), Placed)
        for spared in chosen:
            back = [r for r in reservations if r.container_id not in chosen or r.container_id == spared]
            assert not isinstance(place(MACHINE, back, resources), Placed)
