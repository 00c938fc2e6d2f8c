"""The Python that runs this process, as others can use it."""

from __future__ import annotations

import os
import sys


def executable() -> str:
    """Its path, also when it was called as `../.venv/bin/python`: a sandbox mounts its environment at its own path,
    which must not lead through `..` or a linked folder. The file itself stays the link that a virtual environment
    has."""
    folder, name = os.path.split(sys.executable)
    return os.path.join(os.path.realpath(folder), name)
