"""What a machine has, and what of it is reserved."""

from __future__ import annotations

from dataclasses import dataclass

from lorry.errors import InvalidError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    index: int
    """As nvidia-smi counts."""
    model: str
    """As nvidia-smi prints it: `NVIDIA A100-SXM4-80GB`."""
    memory_mib: int
    """0 where the driver does not tell (cards that share the machine's memory)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    cores: float
    memory_mib: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one container holds, from the decision to start it until its exit is seen.

    It is what was requested. A container may use more where the machine is idle; only the sum of the
    requests has to fit, and a GPU belongs to one container.
    """

    container_id: str
    cores: float
    memory_mib: int
    gpu_indices: tuple[int, ...] = ()


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Cards from `nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader,nounits`.

    Empty output and `No devices were found` are no cards. Raises InvalidError for anything else that is not
    such a table, and for an index that comes twice.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines == ["No devices were found"]:
        return ()
    gpus = tuple(_parse_line(line) for line in lines)
    if len({gpu.index for gpu in gpus}) < len(gpus):
        raise InvalidError(f"nvidia-smi lists an index twice: {'; '.join(lines)}")
    return gpus


def _parse_line(line: str) -> Gpu:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) < 3 or not fields[0].isdecimal() or not fields[1]:
        raise InvalidError(f"not a line of nvidia-smi's index,name,memory.total table: {line!r}")
    index, model, memory = fields[0], ", ".join(fields[1:-1]), fields[-1]
    if memory.startswith("["):  # [N/A], [Not Supported]
        memory = "0"
    if not memory.isdecimal():
        raise InvalidError(f"nvidia-smi's memory of card {index} is no number of MiB: {line!r}")
    return Gpu(index=int(index), model=model, memory_mib=int(memory))
