"""Reading the cards of a machine."""

from __future__ import annotations

import pytest

from lorry.errors import InvalidError
from lorry.scheduler.inventory import Gpu, parse_nvidia_smi


def test_a_table_is_read() -> None:
    text = "0, NVIDIA H100 80GB HBM3, 81559\n1, NVIDIA L4, 23034\n\n"
    assert parse_nvidia_smi(text) == (
        Gpu(index=0, model="NVIDIA H100 80GB HBM3", memory_mib=81559),
        Gpu(index=1, model="NVIDIA L4", memory_mib=23034),
    )


@pytest.mark.parametrize("text", ["", "\n", "No devices were found\n"])
def test_no_cards(text: str) -> None:
    assert parse_nvidia_smi(text) == ()


def test_a_card_that_does_not_tell_its_memory() -> None:
    assert parse_nvidia_smi("0, NVIDIA GB10, [N/A]")[0].memory_mib == 0


@pytest.mark.parametrize(
    "text",
    [
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "index, name, memory.total [MiB]",
        "0, NVIDIA L4, 23034 MiB",
        "0, NVIDIA L4",
        "0, , 12",
        "x, NVIDIA L4, 23034",
        "0, NVIDIA L4, 23034\n0, NVIDIA L4, 23034",
    ],
)
def test_anything_else_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(InvalidError, match="nvidia-smi") as caught:
        parse_nvidia_smi(text)
    assert text.splitlines()[0] in str(caught.value)
