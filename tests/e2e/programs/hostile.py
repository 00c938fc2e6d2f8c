"""A container whose code turns on the server: for test_hostile.py."""

import os
import random
import socket
import time

import lorry
from lorry.wire import identity
from lorry.wire.control import encode
from lorry.wire.frames import PROTOCOL_VERSION, Kind

app = lorry.App("hostile")
mine = lorry.Volume.from_name("hostile-mine", create_if_missing=True)
theirs = lorry.Volume.from_name("hostile-theirs", create_if_missing=True)
CANARY = "canary-" + "5f3a9c"  # never whole in this file
secret = lorry.Secret.from_dict({"HOSTILE_CANARY": CANARY})


@app.function()
def honest(x: int) -> int:
    return x + 1


@app.function(secrets=[secret], volumes={"/theirs": theirs})
def keeper_of_secrets() -> str:
    return os.environ["HOSTILE_CANARY"]


@app.function()
def environment() -> dict:
    return dict(os.environ)


@app.function(volumes={"/mine": mine})
def ask_for(method: str, params: dict) -> str:
    """What the server says to code in a container."""
    from lorry.sdk.channel import current

    try:
        return f"given: {current().ask(method, params)}"
    except lorry.exception.Error as refused:
        return f"{type(refused).__name__}: {refused}"


def _connect() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(identity.container.socket_path)
    sock.settimeout(5)
    return sock


def _is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


@app.function()
def many_connections(count: int, most_alive: int, *, hello: bool) -> tuple[int, str]:
    """How many of them are still open at the end, and what the last one was told. Waits for `most_alive` to be left."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    me = identity.container
    params = {"protocol": PROTOCOL_VERSION, "role": "client", "container_id": me.container_id, "token": me.token}
    socks, said = [], ""
    for _ in range(count):
        socks.append(_connect())
        if hello:
            for frame in encode(Kind.REQUEST, 1, {"method": "hello", "params": params}):
                socks[-1].send(frame)
            said = socks[-1].recv(65536)[40:].decode()
    deadline = time.monotonic() + 5
    while (alive := sum(map(_is_open, socks))) > most_alive and time.monotonic() < deadline:
        time.sleep(0.05)  # the server has yet to accept some
    for sock in socks:
        sock.close()
    return alive, said


@app.function()
def wrong_token(role: str) -> str:
    me = identity.container
    hello = {"protocol": PROTOCOL_VERSION, "role": role, "container_id": me.container_id, "token": "0" * 64}
    with _connect() as sock:
        for frame in encode(Kind.REQUEST, 1, {"method": "hello", "params": hello}):
            sock.send(frame)
        said = sock.recv(65536)[40:].decode()
        for kind in range(1, 22):  # still nobody: none of these may do anything
            try:
                sock.send(bytes([kind]) + os.urandom(80))
            except OSError:
                break
        return said


@app.function()
def storm(seed: int, frames: int) -> int:
    """Garbage over the inner socket, before hello."""
    rng = random.Random(seed)
    sent = 0
    for _ in range(frames):
        with _connect() as sock:
            try:
                sock.send(rng.randbytes(rng.choice([1, 39, 40, 41, 100, 5000])))
                sent += 1
            except OSError:
                continue
    return sent


@app.function()
def lie_about_results(seed: int) -> int:
    """As the container itself, on its own connection's place: malformed results, foreign leases."""
    me = identity.container
    hello = {"protocol": PROTOCOL_VERSION, "role": "container", "container_id": me.container_id, "token": me.token}
    rng = random.Random(seed)
    with _connect() as sock:
        for frame in encode(Kind.REQUEST, 1, {"method": "hello", "params": hello}):
            sock.send(frame)
        sock.recv(65536)
        for _ in range(50):
            header = bytearray(rng.randbytes(40))
            header[0], header[2] = 14, rng.choice([0, 1, 6])
            try:
                sock.send(bytes(header) + rng.randbytes(rng.choice([0, 2, 10, 400])))
            except OSError:
                break
    return seed
