"""A small app that is deployed again and again."""

import time

import lorry

app = lorry.App("versions")


@app.function()
def square(x: int) -> int:
    return x * x


@app.function()
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"
