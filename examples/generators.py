"""A generator in a container: its values arrive while it runs.

Run it:

    lorry run examples/generators.py
"""

import time

import lorry

app = lorry.App("generators")


@app.function()
def countdown(n: int):
    for left in range(n, 0, -1):
        yield left
        time.sleep(0.1)


@app.local_entrypoint()
def main(n: int = 5):
    started = time.monotonic()
    for left in countdown.remote_gen(n):
        passed = time.monotonic() - started
        print(f"{left} after {passed:.1f} s")
    print("done")
