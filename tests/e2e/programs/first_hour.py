"""What a newcomer tries in the first hour, for test_first_hour.py."""

import os
import time

import lorry

app = lorry.App("first-hour")
files = lorry.Volume.from_name("first-hour-files", create_if_missing=True)


@app.function()
def shared_memory(size: int) -> int:
    """What DataLoader workers do: a block of /dev/shm, filled by a child process."""
    import multiprocessing
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=size)
    try:
        child = multiprocessing.get_context("fork").Process(target=_fill, args=(block.name, size))
        child.start()
        child.join()
        assert child.exitcode == 0
        return sum(block.buf[:: size // 4])
    finally:
        block.close()
        block.unlink()


def _fill(name: str, size: int) -> None:
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(name=name)
    block.buf[:size] = b"\1" * size
    block.close()


@app.function()
def who(seconds: float) -> int:
    time.sleep(seconds)
    return hash(os.environ["LORRY_CONTAINER_ID"])


@app.function()
def remember(name: str, text: str | None) -> str:
    path = os.path.expanduser(f"~/.cache/{name}")
    if text is not None:
        with open(path, "w") as file:
            file.write(text)
    with open(path) as file:
        return file.read()


@app.function(single_use_containers=True)
def remember_anew(name: str) -> str:
    with open(os.path.expanduser(f"~/.cache/{name}")) as file:
        return file.read()


@app.function()
def model_caches() -> list[str]:
    """Below which folder libraries keep the models that they download, by their own rules."""
    home = os.path.expanduser("~")
    cache = os.environ.get("XDG_CACHE_HOME", f"{home}/.cache")
    folders = [os.environ.get("HF_HOME", f"{cache}/huggingface"), os.environ.get("TORCH_HOME", f"{cache}/torch")]
    return [os.path.dirname(folder) for folder in folders]


@app.function()
def stop_here() -> None:
    breakpoint()


@app.function()
def ask_here() -> str:
    return input("name? ")


@app.function(volumes={"/files": files})
def write(name: str, text: str) -> list[str]:
    with open(f"/files/{name}", "w") as file:
        file.write(text)
    files.commit()
    return sorted(os.listdir("/files"))


@app.function(volumes={"/files": files})
def read(name: str) -> str:
    files.reload()
    with open(f"/files/{name}") as file:
        return file.read()


@app.function(volumes={"/files": files.read_only()})
def write_where_it_may_not(name: str) -> None:
    with open(f"/files/{name}", "w") as file:
        file.write("x")


@app.function(volumes={"/files": files})
def make_links() -> None:
    for name, target in (("out", "/etc"), ("passwd", "/etc/passwd"), ("up", "../../..")):
        os.symlink(target, f"/files/{name}")


@app.function()
def same(x: int) -> int:
    return x
