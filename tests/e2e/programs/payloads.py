"""Values that travel in shared segments, there and back."""

import random

import lorry

app = lorry.App("payloads")
out = lorry.Volume.from_name("out", create_if_missing=True)
SIZE = 3 << 20


def value(seed: int) -> bytes:
    """No two are equal at any place: a segment that was used again too early shows."""
    return random.Random(seed).randbytes(SIZE)


@app.function(volumes={"/out": out}, env={"LORRY_FAULT_ONCE": "/out/fault"}, timeout=600)
def reverse(sent: bytes) -> bytes:
    return sent[::-1]
