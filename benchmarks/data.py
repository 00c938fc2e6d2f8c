"""Reading training data: `python benchmarks/data.py [SECTION...] [--rounds N] [--quick] [--write-docs]`.

Sections: samples (samples per second from a file in memory), places (the first batch at a first start, a later one, and
near the end of ten million lines), far (bytes read by four slices of an epoch). The environment of the contestants:
`python benchmarks/setup.py data`, 1.5 GB.
"""

from __future__ import annotations

import sys

import run
from sections import far, places, samples

SECTIONS: run.Sections = {"samples": samples, "places": places, "far": far}

if __name__ == "__main__":
    sys.exit(run.main(SECTIONS, __doc__))
