"""Data by path: what `lorry.data` and `run.data` give.

A path is a file, a folder (its `*.txt` or `*.jsonl` files, by name) or a pattern such as `corpus/**/*.txt`; on a
Volume it is the path where that is mounted. Each file is read once from end to end to note where its lines begin,
and never again as a whole. Blank lines are no samples; line ends, `\\n` or `\\r\\n`, are no part of one; the last line
needs none. Text is UTF-8.
"""

from __future__ import annotations

import glob
import json
import os
from typing import Any

from lorry.errors import InvalidError
from lorry.train.batches import Batches
from lorry.train.lines import Lines


class Dataset(Lines):
    """A map-style dataset, of torch's kind too."""

    def batches(self, **options: Any) -> Batches:
        """As `run.data(self, …)`, for programs without a run."""
        return Batches(self, **options)


def text(path: str | os.PathLike[str]) -> Dataset:
    """Samples are lines, as str. InvalidError: nothing there, or (when it is read) not UTF-8."""
    return Dataset(_files(path, ".txt"))


def jsonl(path: str | os.PathLike[str]) -> Dataset:
    """Samples are what the JSON of each line says. InvalidError names file and byte of a line that is none."""
    return Dataset(_files(path, ".jsonl"), json.loads)


def batches(source: Any, **options: Any) -> Batches:
    """`run.data(source, …)`: `source` is a dataset (whatever has `len` and `[i]`, such as a list or one of `datasets`),
    or a path: of JSON lines when its name ends so, of text otherwise. The options are those of `Batches`."""
    if isinstance(source, (str, os.PathLike)):
        source = (jsonl if os.fspath(source).endswith(".jsonl") else text)(source)
    return Batches(source, **options)


def _files(path: str | os.PathLike[str], suffix: str) -> list[str]:
    name = os.fspath(path)
    if os.path.isfile(name):
        return [name]
    pattern = os.path.join(glob.escape(name), f"*{suffix}") if os.path.isdir(name) else name
    found = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    if not found:
        raise InvalidError(f"{pattern} is no file, and matches none")
    return found
