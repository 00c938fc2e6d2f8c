"""Loading a model's file: lorry.weights.load beside safetensors and torch, page cache cold and warm."""

from __future__ import annotations

import json
import subprocess
import tempfile

from rounds import CONTESTANTS, LORRY, Results, alternate, environ, say
from server import base_folder
from setup import python_of

from sections.options import Options

TITLE = "Loading weights"
BUDGETS = ()
LOADERS = ("lorry.weights.load", "safetensors.torch.load_file", "torch.load", "torch.load(mmap=True)")


def run(options: Options, results: Results) -> None:
    python = python_of("coldstart")
    if python is None:
        results.out.append("weights: no environment 'coldstart': python benchmarks/setup.py coldstart makes it")
        return
    mib = options.count(1024, 64)
    base_folder().mkdir(parents=True, exist_ok=True)

    def script(*arguments: str) -> str:
        command = [python, str(CONTESTANTS / "load_weights.py"), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environ()).stdout

    with tempfile.TemporaryDirectory(prefix="weights-", dir=base_folder()) as folder:
        script("all", folder, "make", str(mib))
        turn = 0

        def each() -> None:
            nonlocal turn
            turn += 1
            for how in ("warm", "cold"):
                shift = turn % len(LOADERS)
                for who in (*LOADERS[shift:], *LOADERS[:shift]):
                    answer = json.loads(script(who, folder, how))
                    name = LORRY.name if who == LOADERS[0] else who
                    results.of(f"{mib} MiB, page cache {how}", name, "ms").add(turn, answer)

        say("  each in a process of its own; load and one pass over all numbers")
        alternate(options.rounds, each, "weights")
