"""Functions that need more memory than they were given, for test_memory_backoff.py."""

import os

import lorry

app = lorry.App("memory")
GROWS = lorry.Retries(max_retries=2, memory_backoff=2.0)


def fill(mib: int) -> int:
    return len(bytearray(os.urandom(1 << 20)) * mib) >> 20


@app.function(memory=(64, 120), retries=GROWS)
def take(mib: int) -> int:
    return fill(mib)


@app.function(memory=(64, 120), retries=GROWS, max_containers=1)
def take_again(mib: int) -> int:
    return fill(mib)


@app.cls(memory=(64, 120), retries=GROWS)
class Model:
    @lorry.enter()
    def load(self) -> None:
        self.weights = bytearray(os.urandom(1 << 20)) * 300

    @lorry.method()
    def size(self) -> int:
        return len(self.weights) >> 20
