"""`lorry doctor`: what works on this machine, what does not, and the way up."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lorry import config, errors
from lorry.cli import asking, doctor_security, tables, units

commands = typer.Typer(add_completion=False)
ENOUGH_DISK = 2 << 30
"""Bytes; one image with torch takes more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`verdict`: "ok", "note" (works, could be better) or "fail" (nothing runs before it is mended)."""

    name: str
    verdict: str
    text: str


@commands.command("doctor")
def doctor(
    as_json: tables.AsJson = False,
    attack: Annotated[
        bool, typer.Option("--security", help="Attack each sandbox tier of this machine, and print who stopped what.")
    ] = False,
) -> None:
    """Look at this machine. Exit code 1 when functions cannot run on it, or an attack got further than promised."""
    if attack:
        if not doctor_security.security(as_json):
            raise typer.Exit(1)
        return
    checks = [check for examine in _EXAMINATIONS for check in _safely(examine)]
    if as_json:
        tables.show_json([{"name": c.name, "verdict": c.verdict, "text": c.text} for c in checks])
    else:
        print("\n".join(tables.aligned([c.name, c.verdict, c.text] for c in checks)))
    if any(check.verdict == "fail" for check in checks):
        raise typer.Exit(1)


def _safely(examine: Callable[[], Iterator[Check]]) -> list[Check]:
    """A broken check is a finding, not the end of the report."""
    try:
        return list(examine())
    except Exception as problem:
        name = examine.__name__.removeprefix("_")
        return [Check(name=name, verdict="fail", text=f"{type(problem).__name__}: {problem}")]


def _python() -> Iterator[Check]:
    from lorry import __version__

    fits = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} at {sys.executable}, lorry {__version__}"
    yield Check(
        name="python", verdict="ok" if fits else "fail", text=text if fits else f"{text}: 3.11 or later is needed"
    )


def _system() -> Iterator[Check]:
    from lorry import _NEEDS_LINUX

    text = f"{platform.system()} {platform.release()}"
    linux = sys.platform == "linux"
    yield Check(name="system", verdict="ok" if linux else "fail", text=text if linux else f"{text}: {_NEEDS_LINUX}")


def _isolation() -> Iterator[Check]:
    from lorry.sandbox import detect

    wanted = config.resolve().sandbox
    tiers = detect.report()
    taken = next((t for t in tiers if t.works and wanted in (detect.AUTO, t.tier)), None)
    for tier in tiers:
        verdict = "ok" if tier.works else "note"
        mark = " (in use)" if tier is taken else ""
        yield Check(name=f"tier {tier.tier}{mark}", verdict=verdict, text=tier.sentence)
    if taken is None:
        yield Check(name="isolation", verdict="fail", text=f"no tier works for sandbox={wanted!r}")


def _machine() -> Iterator[Check]:
    from lorry.server.machine import take_inventory

    found = take_inventory(config.resolve().gpu_fixture)
    yield Check(name="cores", verdict="ok", text=f"{found.cores:g}")
    yield Check(name="memory", verdict="ok", text=units.mebibytes(found.memory_mib))
    gpus = ", ".join(f"{gpu.model} ({units.mebibytes(gpu.memory_mib)})" for gpu in found.gpus)
    yield Check(name="gpus", verdict="ok", text=gpus or "none (nvidia-smi shows none)")


def _state() -> Iterator[Check]:
    from lorry.store.filesystem import refuse_network_filesystem

    state = config.resolve().state_dir
    existing = next(folder for folder in (state, *state.parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        text = f"{state} cannot be written: set LORRY_STATE_DIR to a folder that you own"
        yield Check(name="state", verdict="fail", text=text)
        return
    try:
        refuse_network_filesystem(existing)
    except errors.Error as refused:
        yield Check(name="state", verdict="fail", text=str(refused))
        return
    free = shutil.disk_usage(existing).free
    low = free < ENOUGH_DISK
    text = f"{state}, {units.size(free)} free"
    yield Check(
        name="state", verdict="note" if low else "ok", text=f"{text}: too little for large images" if low else text
    )


def _uv() -> Iterator[Check]:
    beside = Path(sys.executable).parent / "uv"
    program = str(beside) if beside.exists() else shutil.which("uv")
    if program is None:
        yield Check(name="uv", verdict="fail", text="missing, and it builds the images: pip install uv")
        return
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    fine = done.returncode == 0
    yield Check(name="uv", verdict="ok" if fine else "fail", text=(done.stdout or done.stderr).strip())


def _server() -> Iterator[Check]:
    from lorry import __version__

    status = asking.running()
    if status is None:
        yield Check(name="server", verdict="ok", text="does not run; the first run starts it")
    elif status["version"] != __version__:
        text = f"runs version {status['version']}, this is {__version__}: lorry server restart"
        yield Check(name="server", verdict="note", text=text)
    else:
        text = f"runs, pid {status['keeper']}, {status['apps']} apps, {status['containers']} containers"
        yield Check(name="server", verdict="ok", text=text)


_EXAMINATIONS = (_python, _system, _isolation, _machine, _state, _uv, _server)
