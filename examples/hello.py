"""The first program: one function, run in a container of its own.

    lorry run examples/hello.py
    lorry run examples/hello.py --name Ada
"""

import os

import lorry

app = lorry.App("hello")


@app.function()
def greet(name: str) -> str:
    print(f"process {os.getpid()} in the container, files here: {os.listdir()}")
    return f"hello, {name}"


@app.local_entrypoint()
def main(name: str = "world"):
    print(greet.local(name), "(from this process)")  # the same code, here
    print(greet.remote(name), "(from a container)")
