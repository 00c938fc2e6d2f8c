"""`gpu=` as users write it, against card names as nvidia-smi prints them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorry.errors import InvalidError
from lorry.model.function import GpuRequest
from lorry.model.gpu import matches, parse_gpu

CARDS = {
    "NVIDIA H100 80GB HBM3": 81559,
    "NVIDIA H100 PCIe": 81559,
    "NVIDIA H100 NVL": 95830,
    "NVIDIA H200": 143771,
    "NVIDIA GH200 480GB": 97871,
    "NVIDIA A100-SXM4-80GB": 81920,
    "NVIDIA A100 80GB PCIe": 81920,
    "NVIDIA A100-SXM4-40GB": 40960,
    "NVIDIA A100-PCIE-40GB": 40960,
    "NVIDIA A10": 23028,
    "NVIDIA A10G": 23028,
    "NVIDIA L4": 23034,
    "NVIDIA L40": 46068,
    "NVIDIA L40S": 46068,
    "Tesla T4": 15360,
    "Tesla V100-SXM2-16GB": 16384,
    "NVIDIA GeForce RTX 4090": 24564,
    "NVIDIA RTX A6000": 49140,
    "NVIDIA RTX 6000 Ada Generation": 49140,
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": 97887,
    "NVIDIA B200": 183359,
}

MEANS = {
    "H100": {"NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"},
    "H100-80GB": {"NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"},
    "H100-NVL": {"NVIDIA H100 NVL"},
    "H200": {"NVIDIA H200"},
    "GH200": {"NVIDIA GH200 480GB"},
    "B200": {"NVIDIA B200"},
    "A100": {name for name in CARDS if "A100" in name},
    "A100-80GB": {"NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"},
    "A100-40GB": {"NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"},
    "A10": {"NVIDIA A10", "NVIDIA A10G"},
    "A10G": {"NVIDIA A10", "NVIDIA A10G"},
    "L4": {"NVIDIA L4"},
    "L4-24GB": {"NVIDIA L4"},
    "L40": {"NVIDIA L40"},
    "L40S": {"NVIDIA L40S"},
    "T4": {"Tesla T4"},
    "V100": {"Tesla V100-SXM2-16GB"},
    "RTX4090": {"NVIDIA GeForce RTX 4090"},
    "RTX-4090": {"NVIDIA GeForce RTX 4090"},
    "4090": {"NVIDIA GeForce RTX 4090"},
    "A6000": {"NVIDIA RTX A6000"},
    "RTX-A6000": {"NVIDIA RTX A6000"},
    "RTX-PRO-6000": {"NVIDIA RTX PRO 6000 Blackwell Server Edition"},
    "RTX-6000-Ada": {"NVIDIA RTX 6000 Ada Generation"},
    "ANY": set(CARDS),
    "H10": set(),
    "100": set(),
}


@pytest.mark.parametrize("spelling", [str.upper, str.lower, str.title])
@pytest.mark.parametrize("request_name", MEANS)
def test_a_request_means_these_cards_and_no_others(request_name: str, spelling: Any) -> None:
    found = {name for name, memory in CARDS.items() if matches(spelling(request_name), name, memory)}
    assert found == MEANS[request_name]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ("L4", [("L4", 1)]),
        ("h100:8", [("H100", 8)]),
        (["H100", "A100-80GB:2"], [("H100", 1), ("A100-80GB", 2)]),
        ("any", [("any", 1)]),
        ("Any:2", [("any", 2)]),
        ("H100!", [("H100", 1)]),
        ("h100!:4", [("H100", 4)]),
        (" L40S : 2 ", [("L40S", 2)]),
        ("rtx 4090", [("RTX 4090", 1)]),
        (("T4",), [("T4", 1)]),
    ],
)
def test_requests_are_read(value: Any, expected: list[tuple[str, int]]) -> None:
    assert parse_gpu(value) == tuple(GpuRequest(model=model, count=count) for model, count in expected)


@pytest.mark.parametrize(
    "value",
    ["", " ", "H100:0", "h100:x", "H100:", ":2", "H100:-1", "H100:1.5", "H100:8:2", "!", "-", "H100,A100", [], [""],
     ["H100", 3], ["H100", None], 1, True, {"H100": 1}, [["H100"]]],
)  # fmt: skip
def test_nonsense_is_refused_with_the_forms_that_work(value: Any) -> None:
    with pytest.raises(InvalidError, match="gpu=") as caught:
        parse_gpu(value)
    assert "H100:8" in str(caught.value) or "at least 1" in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        (request,) = parse_gpu(text)
    except InvalidError:
        return
    assert request.count >= 1
    assert request.model
