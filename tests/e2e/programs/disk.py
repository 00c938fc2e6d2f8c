"""Functions that write more than they may, or more than there is, for test_disk.py."""

import os
import resource
import time

import lorry

app = lorry.App("disk")
out = lorry.Volume.from_name("disk-out", create_if_missing=True)
PIECE = os.urandom(1 << 20)


def write(path: str, mib: int) -> int:
    with open(path, "ab") as file:
        for _ in range(mib):
            file.write(PIECE)
    return mib


@app.function(ephemeral_disk=20, volumes={"/out": out})
def scratch(place: str, mib: int, stay: bool = False) -> int:
    write(f"{place}/data", mib)
    while stay:
        time.sleep(0.05)
    return mib


@app.function(ephemeral_disk=20)
def unlinked() -> None:
    with open("/tmp/gone", "wb") as file:
        os.unlink("/tmp/gone")
        while True:
            if os.fstat(file.fileno()).st_size < 30 << 20:
                file.write(PIECE)
                file.flush()
            time.sleep(0.001)


@app.function()
def fill(until_it_fails: bool) -> int:
    """Writes until the disk is full. What it wrote stays as long as its container."""
    size = 0
    try:
        while True:
            size += write("/tmp/all", 1)
    except OSError:
        if until_it_fails:
            raise
        return size


@app.function()
def echo(value: int) -> int:
    return value


@app.function()
def later(value: int) -> int:
    return value


@app.function()
def nest(depth: int) -> None:
    """Folders in folders, deeper than a path may be long."""
    os.chdir("/tmp")
    for _ in range(depth):
        os.mkdir("deeper" * 10)
        os.chdir("deeper" * 10)
    os.chdir("/")


@app.function()
def fork_without_end() -> None:
    """As if the container had all the processes that it may have: really making them takes minutes."""
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    if os.fork() == 0:
        os._exit(0)
