"""A step of an image build, run by the image's own Python in the build's sandbox.

    build_step.py files FOLDER      copies what FOLDER holds to the same places below /
    build_step.py function FILE     calls the pickled (function, args, kwargs) of FILE

Standard library and lorry only.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))


def copy_files(folder: str) -> None:
    for where, _folders, names in os.walk(folder):
        target = os.path.join("/", os.path.relpath(where, folder))
        os.makedirs(target, exist_ok=True)
        for name in names:
            place = os.path.join(target, name)
            if os.path.lexists(place):
                os.unlink(place)
            shutil.copyfile(os.path.join(where, name), place)
            shutil.copymode(os.path.join(where, name), place)


def call(file: str) -> None:
    from lorry.wire import pickling

    try:
        function, args, kwargs = pickling.loads([Path(file).read_bytes()])
    except ModuleNotFoundError as missing:
        sys.exit(
            f"run_function needs the module {missing.name!r}, which the image does not have: install it before this "
            "step, or import it inside the function"
        )
    result = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        asyncio.run(result)


if __name__ == "__main__":
    (copy_files if sys.argv[1] == "files" else call)(sys.argv[2])
