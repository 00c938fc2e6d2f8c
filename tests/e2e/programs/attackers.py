"""Functions that attack the server itself: for tests/security/test_server_attacks.py."""

import os
import subprocess
import sys
from pathlib import Path

import lorry

app = lorry.App("attackers")
flooders = lorry.App("flooders")
mine = lorry.Volume.from_name("attackers-mine", create_if_missing=True)
CANARY = "-".join(("canary", "b7c1", "e2d9", "44f0"))  # never whole in this file
secret = lorry.Secret.from_dict({"CANARY": CANARY})


def _ask(method: str, params: dict) -> str:
    from lorry.sdk.channel import current

    try:
        return f"given: {current().ask(method, params)}"
    except lorry.exception.Error as refused:
        return f"{type(refused).__name__}: {refused}"


@app.function(restrict_access=True)
def confined_ask(method: str, params: dict) -> str:
    return _ask(method, params)


@app.function()
def ask_all(methods: list[str]) -> list[str]:
    return [_ask(method, {}) for method in methods]


@app.function()
def find_another_door() -> list[str]:
    """Sockets of the server that this container could reach."""
    import socket

    found = []
    for folder in ("/run", "/tmp", "/root", "/var"):
        for path in Path(folder).rglob("*"):
            if path.is_socket() and str(path) != os.environ["LORRY_SOCKET"]:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    try:
                        sock.connect(str(path))
                        found.append(str(path))
                    except OSError:
                        pass
    return found


@app.function(volumes={"/mine": mine})
def run_attack(code: str, facts: dict) -> str:
    """One of lorry/security/programs, in the process that the runner itself is."""
    import contextlib
    import io
    import json

    said = io.StringIO()
    sys.argv = ["attack", json.dumps(facts)]
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        exec(compile(code, "attack", "exec"), {"__name__": "__main__"})
    return said.getvalue() or "failed"


@app.function()
def filters() -> str:
    return Path("/proc/self/status").read_text()


@app.function(volumes={"/mine": mine})
def plant_links(targets: list[str]) -> None:
    for number, target in enumerate(targets):
        Path(f"/mine/link{number}").symlink_to(target)
    Path("/mine/folder").symlink_to(Path(targets[0]).parent)


@flooders.function()
def patient() -> int:
    return 1


@flooders.function()
def flood(mebibytes: int) -> None:
    line = b"x" * 1023 + b"\n"
    for _ in range(mebibytes << 10):
        os.write(1, line)


class Poison:
    """Unpickling it leaves a line in a file of whoever unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return exec, (f"import os\nwith open({self.path!r}, 'a') as file: file.write(f'{{os.getpid()}}\\n')",)


@app.function()
def poisoned(path: str) -> Poison:
    return Poison(path)


@app.function()
def poisonous_error(path: str) -> None:
    error = RuntimeError("poison")
    error.poison = Poison(path)
    raise error


@app.function(secrets=[secret])
def say_it(how: str) -> str:
    """Tells its secret in every way that leads out of a container."""
    value = os.environ["CANARY"]
    if how == "print":
        print(f"the secret is {value}")
        print(value * 3, file=sys.stderr)
        for part in (value[:8], value[8:], "\n"):  # in pieces
            os.write(1, part.encode())
    if how == "child":
        subprocess.run(["sh", "-c", "echo $CANARY; env >&2"], check=True)
    if how == "raise":
        raise ValueError(f"a bad token: {value}")
    if how == "die":
        os.write(2, f"dying of {value}".encode())
        os._exit(3)
    return value if how == "return" else ""
