"""Hello from a file to its line on the terminal: server warm, and with no server there."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import server
from figures import Budget
from rounds import CONTESTANTS, OutError, Results, alternate, say
from setup import lorry_python, python_of

from sections.commands import wall
from sections.options import Options

TITLE = "Hello, whole command"
WARM, COLD = "hello, server warm", "hello, server cold"
CLI, SCRIPT = "Lorry", "Lorry, python hello.py"
BUDGETS = (
    Budget("lorry run ≤ 400 ms", WARM, 400),
    Budget("python hello.py ≤ 400 ms", WARM, 400, name=SCRIPT),
)


def commands() -> dict[str, Sequence[str | Path]]:
    """By contestant; `lorry run` only where the command is there."""
    lorry = Path(lorry_python()).parent / "lorry"
    found: dict[str, Sequence[str | Path]] = {
        SCRIPT: [lorry_python(), CONTESTANTS / "hello_lorry.py"],
        "ProcessPoolExecutor": [lorry_python(), CONTESTANTS / "hello_process_pool.py"],
    }
    if lorry.exists() and subprocess.run([lorry, "run", "--help"], capture_output=True, check=False).returncode == 0:
        found = {CLI: [lorry, "run", CONTESTANTS / "hello_lorry.py"], **found}
    ray = python_of("ray")
    if ray is not None:
        found["Ray"] = [ray, CONTESTANTS / "hello_ray.py"]
    return found


def run(options: Options, results: Results) -> None:
    found = commands()
    if CLI not in found:
        results.out.append("hello: `lorry run` is not there; `python hello.py` stands in")
    turn = 0

    def once(measure: str, name: str) -> None:
        try:
            results.of(measure, name, "ms").add(turn, {"value": wall(found[name], "Hello world")})
        except OutError as reason:
            results.series[measure].pop(name, None)
            results.out.append(f"{name} in {measure}: {reason}")
            say(f"  ! {name} in {measure}: {reason}")
            found.pop(name)

    def each() -> None:
        nonlocal turn
        turn += 1
        for name in [name for name in (CLI, SCRIPT) if name in found]:
            with server.fresh_server():
                once(COLD, name)
        with server.fresh_server():
            if SCRIPT in found:
                wall(found[SCRIPT])  # a server is there now, and the image is known
            for name in list(found):
                once(WARM, name)

    alternate(options.rounds, each, WARM)
