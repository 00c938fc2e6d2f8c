import sys

import lorry

app = lorry.App("hello")


@app.function()
def square(x: int = 7):
    print(f"squaring {x}")
    print(f"careful with {x}", file=sys.stderr)
    return x * x


@app.local_entrypoint()
def main(x: int = 3):
    print("remote says", square.remote(x))
