"""The random numbers that everybody shares: Python's, NumPy's global ones, torch's on the CPU and on every GPU."""

from __future__ import annotations

import hashlib
import importlib
import random
import sys
from typing import Any

State = dict[str, Any]


def capture() -> State:
    """The state of each generator that this process has. A library that is not imported has drawn nothing."""
    state: State = {"python": random.getstate()}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        state["numpy"] = numpy.random.get_state(legacy=False)
    if torch is not None:
        state["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = list(torch.cuda.get_rng_state_all())
    return state


def restore(state: State) -> None:
    """Go on drawing where `capture` was called. A GPU that is not there any more is left out."""
    random.setstate(state["python"])
    if "numpy" in state:
        numpy: Any = importlib.import_module("numpy")
        numpy.random.set_state(state["numpy"])
    if "torch" in state:
        torch: Any = importlib.import_module("torch")
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            for device, kept in enumerate(state["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(kept, device)


def seed_for(seed: int, step: int) -> int:
    """64 bits that depend on nothing but the run's seed and the step."""
    return int.from_bytes(hashlib.sha256(f"lorry {seed} {step}".encode()).digest()[:8], "little")


def seed(value: int) -> None:
    """Start every generator of this process from one number."""
    random.seed(value)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed([value & 0xFFFFFFFF, value >> 32])
    if torch is not None:
        torch.manual_seed(value)
