"""Output as tqdm and its friends write it."""

import sys
import time

import lorry

app = lorry.App("bars")


@app.function(min_containers=2, max_containers=2)
def progress(name: str):
    for step in range(1, 6):
        sys.stderr.write(f"\r{name}: {step * 20:3d}%|{'#' * step}{' ' * (5 - step)}| of a bar that is rather wide")
        sys.stderr.flush()
        time.sleep(0.4)
    sys.stderr.write("\n")


@app.local_entrypoint()
def bars():
    list(progress.map(["left", "right"]))


@app.function()
def thousand_a_second(n: int = 2000):
    for i in range(n):
        print("line", i)
        time.sleep(0.001)
