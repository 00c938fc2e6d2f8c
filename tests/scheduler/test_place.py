"""Now, later or never: reservations of cores, memory and cards."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.model.function import GpuRequest, Resources
from lorry.model.gpu import matches, parse_gpu
from lorry.scheduler.inventory import Gpu, Inventory, Reservation
from lorry.scheduler.place import Never, Placed, Scarce, Wait, place

MEMORY = {
    "NVIDIA H100 80GB HBM3": 81559,
    "NVIDIA A100-SXM4-80GB": 81920,
    "NVIDIA A100-SXM4-40GB": 40960,
    "NVIDIA L4": 23034,
}
H100, A100_80, A100_40, L4 = MEMORY


def a_machine(*models: str, cores: float = 8, memory: int = 16_000) -> Inventory:
    gpus = tuple(Gpu(index=at, model=model, memory_mib=MEMORY[model]) for at, model in enumerate(models))
    return Inventory(cores=cores, memory_mib=memory, gpus=gpus)


def holds(name: str, *gpus: int, cores: float = 0.125, memory: int = 128) -> Reservation:
    return Reservation(container_id=name, cores=cores, memory_mib=memory, gpu_indices=gpus)


def wants(gpu: Any = None, cpu: float = 0.125, memory: int = 128) -> Resources:
    return Resources(cpu=cpu, memory=memory, gpus=parse_gpu(gpu))


def placed(inventory: Inventory, held: list[Reservation], resources: Resources) -> Placed:
    answer = place(inventory, held, resources)
    assert isinstance(answer, Placed), answer
    return answer


def test_cores_and_memory_are_reserved_as_requested() -> None:
    answer = placed(a_machine(), [], wants(cpu=2, memory=1000))
    assert answer.reserved_for("ct-1") == Reservation(container_id="ct-1", cores=2, memory_mib=1000)
    assert answer.sentence == "Reserved 2 cores, 1000 MiB of memory."
    assert answer.gpu_model == ""


def test_a_core_takes_its_parts_whatever_floats_make_of_them() -> None:
    held = [holds("ct-1", cores=0.2), holds("ct-2", cores=0.6)]
    assert 1 - (0.2 + 0.6) < 0.2
    placed(a_machine(cores=1), held, wants(cpu=0.2))


def test_more_cores_than_installed_never_fit() -> None:
    answer = place(a_machine(cores=2), [], wants(cpu=64))
    assert isinstance(answer, Never)
    assert answer.reason is Scarce.CPU
    assert answer.sentence.startswith("cpu=64 reserves more than the 2 cores of this machine")


def test_more_memory_than_installed_never_fits() -> None:
    answer = place(a_machine(memory=16_000), [], wants(memory=65_536))
    assert isinstance(answer, Never)
    assert answer.reason is Scarce.MEMORY
    assert "memory=65536" in answer.sentence
    assert "16000 MiB" in answer.sentence


def test_waiting_for_memory_names_the_largest_holders() -> None:
    held = [holds(f"ct-{size}", memory=size * 1000) for size in (1, 2, 3, 4, 5)]
    answer = place(a_machine(memory=16_000), held, wants(memory=2_000))
    assert isinstance(answer, Wait)
    assert answer.reason is Scarce.MEMORY
    assert "Waits for 2000 MiB of memory: 1000 of 16000 are free" in answer.sentence
    assert answer.sentence.endswith("held by ct-5 (5000 MiB), ct-4 (4000 MiB), ct-3 (3000 MiB) and 2 more.")


def test_waiting_for_cores_names_the_holder() -> None:
    answer = place(a_machine(cores=2), [holds("ct-1", cores=1.5)], wants(cpu=1))
    assert isinstance(answer, Wait)
    assert answer.reason is Scarce.CPU
    assert answer.sentence == "Waits for 1 cores: 0.5 of 2 are free; held by ct-1 (1.5)."


def test_cards_are_exclusive_and_taken_from_the_lowest_index() -> None:
    answer = placed(a_machine(H100, H100, H100), [holds("ct-1", 0)], wants("h100"))
    assert answer.gpu_indices == (1,)
    assert answer.gpu_model == H100
    assert answer.sentence == ("Reserved 0.125 cores, 128 MiB of memory and 1 x NVIDIA H100 80GB HBM3 (index 1).")


def test_the_first_alternative_that_is_free_is_taken() -> None:
    machine = a_machine(H100, A100_80, A100_80)
    asked = wants(["H100", "A100-80GB:2"])
    assert placed(machine, [], asked).gpu_indices == (0,)
    assert placed(machine, [holds("ct-1", 0)], asked).gpu_indices == (1, 2)


def test_busy_cards_are_waited_for_and_their_holders_named() -> None:
    machine = a_machine(H100, H100, L4)
    answer = place(machine, [holds("ct-1", 0), holds("ct-2", 2)], wants("H100:2"))
    assert isinstance(answer, Wait)
    assert answer.reason is Scarce.GPU
    assert answer.sentence == 'Waits for gpu="H100:2": 1 of 2 such cards are free; held by ct-1 (GPU 0).'


def test_a_card_that_is_not_there_lists_those_that_are() -> None:
    answer = place(a_machine(L4, L4), [], wants("H100:8"))
    assert isinstance(answer, Never)
    assert answer.reason is Scarce.GPU
    assert answer.sentence == ('gpu="H100:8": this machine has 2 x NVIDIA L4. gpu="any" takes whatever there is.')


def test_more_cards_than_there_are_never_fit() -> None:
    answer = place(a_machine(L4), [], wants("any:2"))
    assert isinstance(answer, Never)
    assert answer.sentence == 'gpu="any:2": this machine has 1 x NVIDIA L4. Ask for at most 1.'


def test_a_machine_without_cards_does_not_recommend_any() -> None:
    answer = place(a_machine(), [], wants(["H100", "any"]))
    assert isinstance(answer, Never)
    assert answer.sentence == ('gpu=["H100", "any"]: this machine has no GPU. Leave gpu= out to run on the CPU.')


def test_any_takes_the_smallest_card_and_leaves_the_large_one() -> None:
    assert placed(a_machine(H100, L4), [], wants("any")).gpu_indices == (1,)
    assert placed(a_machine(A100_80, A100_40), [], wants("A100")).gpu_indices == (1,)


def test_several_cards_are_of_one_model_if_possible() -> None:
    assert placed(a_machine(L4, A100_40, A100_40), [], wants("any:2")).gpu_indices == (1, 2)
    mixed = placed(a_machine(L4, H100), [], wants("any:2"))
    assert mixed.gpu_indices == (0, 1)
    assert mixed.gpu_model == f"{L4} + {H100}"


# --- properties -------------------------------------------------------------------------------------------

requests = st.builds(
    GpuRequest, model=st.sampled_from(["any", "H100", "A100", "A100-80GB", "L4"]), count=st.integers(1, 3)
)
resources = st.builds(
    Resources,
    cpu=st.sampled_from([0.0, 0.1, 0.125, 1.0, 2.5, 6.0]),
    memory=st.sampled_from([0, 128, 1000, 4096, 9000]),
    gpus=st.lists(requests, max_size=2).map(tuple),
)
machines = st.builds(
    lambda models, cores, memory: a_machine(*models, cores=cores, memory=memory),
    st.lists(st.sampled_from(list(MEMORY)), max_size=5),
    st.sampled_from([1.0, 2.0, 8.0]),
    st.sampled_from([1000, 8192]),
)
steps = st.lists(st.one_of(resources, st.integers(0, 9)), max_size=25)
"""Each step starts a container or ends the nth one."""


@given(machines, steps)
def test_no_card_twice_and_no_sum_above_the_inventory(machine: Inventory, plan: list[Any]) -> None:
    held: list[Reservation] = []
    for at, step in enumerate(plan):
        if isinstance(step, int):
            held = held[:step] + held[step + 1 :]
            continue
        answer = place(machine, held, step)
        assert answer.sentence
        if isinstance(answer, Placed):
            check_alternative(machine, answer, step)
            held.append(answer.reserved_for(f"ct-{at}"))
        cards = [index for each in held for index in each.gpu_indices]
        assert len(cards) == len(set(cards))
        assert set(cards) <= {gpu.index for gpu in machine.gpus}
        assert sum(each.cores for each in held) <= machine.cores + 1e-6
        assert sum(each.memory_mib for each in held) <= machine.memory_mib


def check_alternative(machine: Inventory, answer: Placed, asked: Resources) -> None:
    models = [gpu for gpu in machine.gpus if gpu.index in answer.gpu_indices]
    if not asked.gpus:
        assert not models
        return
    assert any(
        len(models) == each.count and all(matches(each.model, gpu.model, gpu.memory_mib) for gpu in models)
        for each in asked.gpus
    )


@given(machines, st.lists(resources, max_size=8), resources)
def test_what_waits_fits_the_empty_machine_and_what_never_fits_does_not(
    machine: Inventory, others: list[Resources], mine: Resources
) -> None:
    held: list[Reservation] = []
    for at, each in enumerate(others):
        answer = place(machine, held, each)
        if isinstance(answer, Placed):
            held.append(answer.reserved_for(f"ct-{at}"))
    answer, alone = place(machine, held, mine), place(machine, [], mine)
    assert isinstance(alone, Never) == isinstance(answer, Never)
    assert not isinstance(alone, Wait)
    if isinstance(answer, Wait):
        assert isinstance(alone, Placed)
        assert any(each.container_id in answer.sentence for each in held)


@pytest.mark.parametrize("gpu", [None, "any", "L4"])
def test_a_reservation_released_is_there_again(gpu: str | None) -> None:
    machine = a_machine(L4)
    first = placed(machine, [], wants(gpu, cpu=8)).reserved_for("ct-1")
    assert isinstance(place(machine, [first], wants(gpu, cpu=8)), Wait)
    assert placed(machine, [], wants(gpu, cpu=8)).reserved_for("ct-1") == first
