"""Randomness as a function of what it is for: nothing to save, and nothing that prefetching or workers can disturb."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
from collections.abc import Iterator


def number(purpose: str, seed: int, epoch: int, sample: int) -> int:
    """64 bits, the same on every machine."""
    text = f"{purpose}/{seed}/{epoch}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


@contextlib.contextmanager
def generators_at(seed: int) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch (CPU) begin at `seed`; afterwards they go on where they
    stood, so that a model's dropout is the same whether batches are made here or in workers."""
    numpy = getattr(sys.modules.get("numpy"), "random", None)
    torch = getattr(sys.modules.get("torch"), "default_generator", None)
    before = random.getstate()
    before_numpy = numpy.get_state() if numpy is not None else None
    before_torch = torch.get_state() if torch is not None else None
    random.seed(seed)
    if numpy is not None:
        numpy.seed(seed & 0xFFFFFFFF)
    if torch is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        if numpy is not None:
            numpy.set_state(before_numpy)
        if torch is not None:
            torch.set_state(before_torch)
