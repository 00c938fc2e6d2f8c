"""Functions of every kind, for the end-to-end tests."""

import asyncio
import os
import sys
import time

import lorry

app = lorry.App("calls")


class Oops(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        import threading

        self.lock = threading.Lock()


@app.function()
def square(x: int) -> int:
    return x * x


@app.function()
def add(a: int, b: int = 10, *, c: int = 0) -> int:
    return a + b + c


@app.function()
def fail(kind: str) -> None:
    if kind == "own":
        raise Oops(7, "seven")
    if kind == "cause":
        try:
            int("x")
        except ValueError as problem:
            raise RuntimeError("outer") from problem
    if kind == "unpicklable":
        raise Unpicklable
    if kind == "exit":
        sys.exit(3)
    if kind == "file":
        open("pyproject.toml")
    if kind == "input":
        input("name? ")
    if kind == "import":
        import numpy  # noqa: F401
    if kind == "lambda":
        return lambda: 1


@app.function()
def die(how: str) -> None:
    if how == "exit":
        os._exit(9)
    if how == "segv":
        import ctypes

        ctypes.string_at(0)


@app.function()
def unpicklable_result() -> object:
    import threading

    return threading.Lock()


@app.function()
def talk(n: int) -> int:
    for i in range(n):
        print(f"out {i}")
    print("err", file=sys.stderr)
    os.system("echo from a subprocess")
    return n


@app.function()
def count(n: int):
    for i in range(n):
        yield i


@app.function()
def count_and_fail(n: int):
    yield from range(n)
    raise Oops(n, "after values")


@app.function(timeout=1)
def sleep_over(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@app.function(timeout=600)
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


@app.function(timeout=600)
def stubborn(path: str) -> str:
    """Ignores its cancellation as long as it can."""
    while True:
        try:
            time.sleep(0.05)
        except BaseException:
            pass


@app.function()
async def async_square(x: int) -> int:
    await asyncio.sleep(0)
    return x * x


@app.function()
async def async_count(n: int):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


@app.function()
@lorry.concurrent(max_inputs=8)
async def together(x: int) -> int:
    await asyncio.sleep(0.2)
    return x


@app.function()
@lorry.concurrent(max_inputs=4)
def threads(x: int) -> str:
    import threading

    time.sleep(0.1)
    return threading.current_thread().name


@app.function()
def call_square(x: int) -> int:
    return square.remote(x) + 1


@app.function()
def apply(function: lorry.Function, x: int) -> int:
    return function.remote(x)


@app.function()
def identity_of() -> dict:
    return {
        "local": lorry.is_local(),
        "call": lorry.current_function_call_id(),
        "cwd": os.getcwd(),
        "home": os.environ["HOME"],
        "pid": os.getpid(),
        "uid": os.getuid(),
        "files": sorted(os.listdir(".")),
    }


@app.function()
def input_id(_i: int) -> tuple[str, str]:
    return lorry.current_function_call_id(), lorry.current_input_id()


@app.function()
@lorry.concurrent(max_inputs=4)
async def input_id_among_others(_i: int) -> tuple[str, str]:
    return lorry.current_function_call_id(), lorry.current_input_id()


@app.function()
def total(array) -> float:
    return sum(array) if isinstance(array, list) else float(array.sum())


@app.function()
def echo(value):
    return value


@app.function()
def size_of(value: bytes) -> int:
    return len(value)


@app.function()
def zeros(n: int) -> bytes:
    return bytes(n)


@app.function(retries=2)
def flaky(path: str) -> int:
    """Fails twice, then works; counts in a file of its cache folder, which outlives containers."""
    file = os.path.expanduser(f"~/.cache/{path}")
    with open(file, "a") as out:
        out.write("x")
    tries = os.path.getsize(file)
    if tries < 3:
        raise ValueError(f"try {tries}")
    return tries


@app.cls()
class Counter:
    start: int = lorry.parameter(default=0)

    @lorry.enter()
    def prepare(self) -> None:
        self.value = self.start

    @lorry.method()
    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    @lorry.method()
    def twice(self, n: int) -> int:
        return self.add(n) + self.add.local(0)

    @lorry.method()
    def up_to(self, n: int):
        yield from range(self.start, n)

    @lorry.exit()
    def goodbye(self) -> None:
        print("goodbye from", self.start)
