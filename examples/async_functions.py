"""Async functions share one container; `.aio` waits for many calls at once.

Run it:

    lorry run examples/async_functions.py
"""

import asyncio
import time

import lorry

app = lorry.App("async-functions")


@app.function()
@lorry.concurrent(max_inputs=100)  # up to 100 inputs at a time in one container, on one event loop
async def fetch(page: int) -> str:
    await asyncio.sleep(0.5)  # stands for a slow server
    return f"page {page}"


@app.local_entrypoint()
async def main(pages: int = 20):
    await fetch.remote.aio(0)  # the container starts
    started = time.monotonic()
    found = await asyncio.gather(*(fetch.remote.aio(page) for page in range(pages)))
    passed = time.monotonic() - started
    print(found[0], "to", found[-1])
    print("one after the other it would take", 0.5 * pages, "s; it took less than 2 s:", passed < 2)
