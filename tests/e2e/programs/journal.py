"""Inputs that leave a trace: each execution appends its id to a file in a volume."""

import os
import time

import lorry

app = lorry.App("journal")
out = lorry.Volume.from_name("out", create_if_missing=True)


def leave(name: str, text: object) -> None:
    with open(f"/out/{name}", "a") as file:
        file.write(f"{text}\n")


@app.function(volumes={"/out": out}, timeout=600)
def mark(i: int, name: str = "log") -> int:
    leave(name, i)
    return i


@app.function(volumes={"/out": out}, timeout=600)
def slow_mark(i: int, seconds: float, name: str) -> int:
    leave(name, i)
    time.sleep(seconds)
    return i


@app.function(volumes={"/out": out}, env={"LORRY_FAULT_ONCE": "/out/fault"}, timeout=600)
def marked_with_faults(i: int, name: str) -> int:
    leave(name, i)
    return i


@app.function(volumes={"/out": out}, timeout=600)
def wait_for(name: str) -> str:
    """Until a file appears in the volume."""
    leave("waiting", os.getpid())
    while not os.path.exists(f"/out/{name}"):
        time.sleep(0.01)
    return name


@app.function(volumes={"/out": out}, timeout=600)
def stream(n: int, name: str):
    leave(name, "started")
    for i in range(n):
        yield i
        time.sleep(0.01)
