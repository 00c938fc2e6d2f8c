"""Functions that go to the limits and beyond, for test_limits.py."""

import os
import sys
import threading
import time

import lorry

app = lorry.App("limits")
out = lorry.Volume.from_name("limits-out", create_if_missing=True)


@app.function()
def echo(value):
    return value


@app.function()
def length(value) -> tuple[int, int]:
    view = memoryview(value)
    return len(view), view[-1]


@app.function(memory=(64, 160))
def large_result(mib: int) -> bytes:
    return bytes(bytearray(os.urandom(1 << 20)) * mib)


@app.function(timeout=600)
def print_forever(text: str) -> None:
    while True:
        print(text)


@app.function()
def one_line(mib: int) -> int:
    piece = "x" * (1 << 20)
    for _ in range(mib):
        sys.stdout.write(piece)
    return mib


@app.function()
def binary() -> str:
    os.write(1, b"\xff\xfe\x00binary\x80\n")
    sys.stdout.buffer.write(bytes(range(256)) + b"\n")
    sys.stdout.buffer.flush()
    return "done"


@app.function()
def fork_and_return() -> int:
    """Both processes come back out of the function; the parent's answer counts."""
    print("before", flush=True)
    os.fork()
    return os.getpid()


@app.function()
@lorry.concurrent(max_inputs=2)
def fork_in_thread() -> int:
    os.fork()
    return os.getpid()


@app.function()
def pids() -> dict:
    return {"pid": os.getpid(), "all": [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]}


@app.function()
def pids_limit() -> int:
    """What the kernel counts against this container's limit of processes: it is read on the host."""
    return os.getpid()


@app.function(volumes={"/out": out})
def leave_a_thread(name: str) -> str:
    def later() -> None:
        while not os.path.exists(f"/out/{name}.go"):
            time.sleep(0.005)
        print("a word from the thread")
        open(f"/out/{name}.done", "w").close()

    threading.Thread(target=later, daemon=True).start()
    return "returned"


@app.function()
def close_stdout() -> str:
    os.close(1)
    return "still here"


@app.function()
def raise_it(kind: str):
    if kind == "keyboard":
        raise KeyboardInterrupt
    if kind == "generator exit":
        raise GeneratorExit
    if kind == "stop":
        raise StopIteration(5)
    if kind == "recursion":
        return raise_it.get_raw_f()("recursion")
    if kind == "huge":
        raise ValueError("begin" + "x" * 100_000_000 + "end")
    if kind == "str raises":
        raise StrRaises
    if kind == "array":
        raise ValueError(b"y" * 200_000)
    if kind == "deep":
        value = []
        for _ in range(100_000):
            value = [value]
        return value
    if kind == "generator":
        return (i for i in range(3))
    if kind == "coroutine":
        coroutine = _coroutine()
        try:
            return [coroutine]
        finally:
            coroutine.close()
    return kind


@app.function()
@lorry.concurrent(max_inputs=4)
def raise_in_thread(kind: str) -> None:
    if kind == "stop":
        raise StopIteration(5)
    if kind == "keyboard":
        raise KeyboardInterrupt
    if kind == "exit":
        sys.exit(2)


async def _coroutine() -> int:
    return 1


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@app.function()
def overflow_the_stack() -> None:
    sys.setrecursionlimit(10**9)

    def down(n: int) -> int:
        return sum(map(down, [n + 1]))  # through C, so that the real stack grows

    down(0)


@app.function(volumes={"/out": out})
def leave_pid(name: str) -> None:
    with open(f"/out/{name}", "a") as file:
        file.write(f"{os.getpid()}\n")
    while not os.path.exists(f"/out/{name}.go"):
        time.sleep(0.005)


@app.function()
def nested() -> str:
    """Deep enough that the pickler gives up on the argument before it is sent."""
    return "ran"


@app.function(gpu="L4")
def on_one_card() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


@app.function(memory=10_000_000)
def too_much_memory() -> None:
    pass


@app.function(volumes={"/out": out}, timeout=600)
def large_after(name: str, size: int) -> bytes:
    """A result that meets whatever the test has done meanwhile."""
    open(f"/out/{name}.waits", "w").close()
    while not os.path.exists(f"/out/{name}"):
        time.sleep(0.005)
    return bytes(size)
