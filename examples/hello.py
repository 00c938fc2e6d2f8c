"""The first program: one function, run in a container of its own.

Run it:

    lorry run examples/hello.py
    lorry run examples/hello.py --name Ada
"""

import lorry

app = lorry.App("hello")


@app.function()
def greet(name: str) -> str:
    place = "your machine's own Python" if lorry.is_local() else "a container"
    return f"hello, {name}, from {place}"


@app.local_entrypoint()
def main(name: str = "world"):
    print(greet.local(name))  # the same code, in this process
    print(greet.remote(name))  # and in a container
