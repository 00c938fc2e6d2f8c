"""Ten thousand inputs: many at a time, results in order, one error at its place.

Run it:

    lorry run examples/map.py
    lorry run examples/map.py --n 1000000
"""

import lorry

app = lorry.App("map")


@app.function()
def square(x: int) -> int:
    return x * x


@app.function()
def inverse(x: float) -> float:
    return 1 / x


@app.local_entrypoint()
def main(n: int = 10_000):
    print("sum of squares:", sum(square.map(range(n))))

    # Inputs are read while results come, so they may be endless; leaving the loop cancels the rest.
    for y in square.map(iter(int, 1)):
        print("first of endlessly many:", y)
        break

    values = list(inverse.map([1, 2, 0, 4], return_exceptions=True))
    print("with an error in its place:", values)
