"""Checkpoints and slices: `python benchmarks/checkpoint.py [SECTION...] [--rounds N] [--quick] [--write-docs]`.

Sections: checkpoints (stall, slow-down of the steps that follow, time until durable, restore and bytes, of a model
of 10 and of 125 million parameters in training, beside torch.save, safetensors and torch.distributed.checkpoint)
and slices (training in slices of one and of five minutes, beside the same without; an hour a round). The environment
of the peers: `python benchmarks/setup.py coldstart`, 1.5 GB.
"""

from __future__ import annotations

import sys

import run
from sections import checkpoints, slices

if __name__ == "__main__":
    sys.exit(run.main({"checkpoints": checkpoints, "slices": slices}, __doc__))
