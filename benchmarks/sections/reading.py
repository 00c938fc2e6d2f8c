"""What the sections about training data share: a file of lines, and readers that are started beside each other."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rounds import CONTESTANTS, Results, environ, say
from setup import python_of

SCRIPT = CONTESTANTS / "read_data.py"
LEFT = 1000
"""Samples before the end, for a start that is near it."""


@contextlib.contextmanager
def lines(count: int, folder: Path) -> Iterator[Path]:
    """A new file of `count` lines of 20 to 160 letters."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=folder) as scratch:
        path = Path(scratch, f"{count}.txt")
        rng = random.Random(1)
        some = [bytes(rng.choices(b"abcdefghij klmnop", k=rng.randint(20, 160))) + b"\n" for _ in range(10_000)]
        say(f"  writing {count:,} lines")
        with path.open("wb") as file:
            for start in range(0, count, len(some)):
                rng.shuffle(some)
                file.write(b"".join(some[: count - start]))
            os.fsync(file.fileno())
        yield path


class Readers:
    """Starts of readers, each a process of its own. What they keep begins empty, and lies below `caches`."""

    def __init__(self, results: Results, caches: Path) -> None:
        self._results, self._caches = results, caches
        self._python = python_of("data")
        self._out: set[str] = set()
        if self._python is None:
            self._note("no environment 'data': python benchmarks/setup.py data makes it")

    def start(self, name: str, path: Path, *numbers: int | str) -> dict[str, float] | None:
        """What one start measured. None: it cannot take part, and the results say why."""
        if self._python is None or name in self._out:
            return None
        cache = str(self._caches / f"cache of {name.partition(',')[0]}")
        env = environ() | {"XDG_CACHE_HOME": cache, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        command = [self._python, str(SCRIPT), name, str(path), *map(str, numbers)]
        ended = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        if ended.returncode:
            self._out.add(name)
            self._note(f"{name}: {(ended.stderr.strip().splitlines() or ['failed'])[-1]}")
            return None
        found: dict[str, float] = json.loads(ended.stdout or "{}")
        return found

    def _note(self, text: str) -> None:
        self._results.out.append(text)
        say(f"  ! {text}")


def rotated(names: tuple[str, ...], turn: int) -> tuple[str, ...]:
    shift = turn % len(names)
    return (*names[shift:], *names[:shift])
