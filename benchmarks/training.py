"""Training that survives: `python benchmarks/training.py [SECTION...] [--rounds N] [--quick] [--write-docs]`.

Sections: checkpoint (what a save costs, beside its peers), slices (what time slices cost; with 5-minute slices, half an
hour a round), and data (`benchmarks/data.py`).
"""

from __future__ import annotations

import importlib
import sys

import run

SECTIONS = {name: importlib.import_module(f"sections.{name}") for name in ("slices",)}

if __name__ == "__main__":
    sys.exit(run.main(SECTIONS, __doc__))
