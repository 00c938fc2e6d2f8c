"""Starts /usr/bin/true as a plain process and in each sandbox tier, in turns: `tier_starts.py N`.

Prints {name: [milliseconds from the order to the end of the program]}. Needs the packages lorry.sandbox, lorry.errors
and lorry.ids only, so that an ordinary user can run it from a copy.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from lorry.ids import new_id
from lorry.sandbox import detect
from lorry.sandbox.interface import Sandbox, SandboxSpec
from lorry.sandbox.limits import find_limits

PROGRAM = "/usr/bin/true"


async def plain() -> float:
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(PROGRAM)
    await process.wait()
    return (time.perf_counter() - began) * 1e3


async def sandboxed(sandbox: Sandbox, base: Path) -> float:
    container_id = new_id("ct")
    folder = base / container_id
    folder.mkdir(mode=0o700)
    spec = SandboxSpec(
        container_id=container_id, argv=(PROGRAM,), env=(("PATH", "/usr/bin"),), folder=str(folder), memory_limit=256
    )
    began = time.perf_counter()
    process = await sandbox.start(spec)
    await process.wait()
    took = (time.perf_counter() - began) * 1e3
    process.close()
    return took


async def main(count: int) -> dict[str, list[float]]:
    limits = find_limits()
    working = {report.tier for report in detect.report(limits) if report.works}
    sandboxes = [detect.choose(tier, limits) for tier in detect.TIERS if tier in working]
    user = "root" if os.geteuid() == 0 else "user"
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(count + 1):
            measured = {f"plain process ({user})": await plain()}
            for sandbox in sandboxes:
                measured[f"{sandbox.name} ({user})"] = await sandboxed(sandbox, Path(name))
            for title, took in measured.items():
                if turn:  # the first one compiles and fills the page cache
                    found.setdefault(title, []).append(took)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1])))))
