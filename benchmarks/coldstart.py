"""Starts from nothing: `python benchmarks/coldstart.py [SECTION...] [--rounds N] [--quick] [--write-docs]`.

Sections: starts (a container of a function that imports torch, beside its peers), forks (templates of 0.2, 1 and 5 GB),
sharing (memory of 1, 2, 5 and 10 containers of a 500 MB model), weights (lorry.weights.load beside others), and where
they are there tiers (what each sandbox tier adds to a start) and images (starts from large images). The environment of
the peers: `python benchmarks/setup.py coldstart`, 1.5 GB.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import run

HERE = Path(__file__).resolve().parent
SECTIONS = {
    name: importlib.import_module(f"sections.{name}")
    for name in ("starts", "forks", "sharing", "weights", "tiers", "images")
    if (HERE / "sections" / f"{name}.py").exists()
}

if __name__ == "__main__":
    sys.exit(run.main(SECTIONS, __doc__))
