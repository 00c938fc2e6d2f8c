"""GPU names: what a user writes in `gpu=`, what `nvidia-smi` prints, and when the one means the other."""

from __future__ import annotations

import re

from lorry.errors import InvalidError
from lorry.model.function import GpuRequest

ANY = "any"

_REQUEST = re.compile(r"\s*(?P<model>[a-z0-9](?:[a-z0-9 _-]*[a-z0-9])?)\s*!?\s*(?::\s*(?P<count>\d+)\s*)?", re.I)
_MEMORY = re.compile(r"(\d+)gb")
_FORMS = '"L4", "H100:8", ["H100", "A100-80GB:2"] or "any"'

_SAME_CARD = {"a10g": "a10"}
"""A10G is the name under which one cloud sells (and nvidia-smi there prints) the A10."""

_MEMORY_TOLERANCE = 0.1
"""Cards show less than they are sold with: an L4 of 24 GB has 22.5 GiB, a T4 of 16 GB has 15."""


def parse_gpu(value: str | list[str] | None) -> tuple[GpuRequest, ...]:
    """`gpu=` as ordered alternatives; None is no GPU. Raises InvalidError for what cannot be meant.

    Model names are not checked against a list: cards that come out later must work. `H100!` is `H100`, since
    Lorry never gives a better card than the one asked for.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (_parse_one(value),)
    if not isinstance(value, list | tuple):
        raise InvalidError(f"gpu={value!r}: expected {_FORMS}, not {type(value).__name__}")
    if not value:
        raise InvalidError(f"gpu=[] names no alternative; leave gpu= out for no GPU, or use {_FORMS}")
    return tuple(_parse_one(one) for one in value)


def _parse_one(value: object) -> GpuRequest:
    match = _REQUEST.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidError(f"gpu={value!r} is not a GPU request; expected {_FORMS}")
    count = int(match["count"] or 1)
    if count < 1:
        raise InvalidError(f"gpu={value!r} asks for no card; leave gpu= out for no GPU, or ask for at least 1")
    model = match["model"]
    return GpuRequest(model=ANY if model.lower() == ANY else model.upper(), count=count)


def matches(request: str, model: str, memory_mib: int) -> bool:
    """Whether the card `model` (as nvidia-smi prints it, with `memory_mib`) is what `request` names.

    The words of the request must stand in the card's name, whole and in one piece, so that L4 is not L40S;
    `80GB` may stand anywhere in the name, or be the card's memory where the name does not say.
    """
    if request.lower() == ANY:
        return True
    wanted, wanted_memory = _words(request)
    words, named_memory = _words(model)
    runs = (words[at : at + len(wanted)] for at in range(len(words) - len(wanted) + 1))
    if not any(run == wanted for run in runs):
        return False
    if wanted_memory is None:
        return True
    if named_memory is not None:
        return wanted_memory == named_memory
    return abs(memory_mib / 1024 - wanted_memory) <= _MEMORY_TOLERANCE * wanted_memory


def _words(name: str) -> tuple[list[str], int | None]:
    """`NVIDIA A100-SXM4-80GB` → ([nvidia, a100, sxm4], 80)."""
    spaced = re.sub(r"\b([rg]tx)(?=[a0-9])", r"\1 ", name.lower())  # people write RTX4090 and RTX 4090
    words = re.findall(r"[a-z0-9]+", spaced)
    memory = next((int(found[1]) for word in words if (found := _MEMORY.fullmatch(word))), None)
    return [_SAME_CARD.get(word, word) for word in words if not _MEMORY.fullmatch(word)], memory
