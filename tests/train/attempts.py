"""Attempts at training, each a process of its own that may be killed. They are forks of one that has imported torch,
which saves each of them two seconds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

import lorry
from lorry.images.builder import ImageBuilder
from lorry.images.indexes import client_index_settings
from lorry.images.runner import DirectRunner
from lorry.model.image import ImageBase, ImageSpec, PipInstall

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended."""

    status: int
    """As subprocess has it: negative for a signal."""
    seconds: float
    said: str
    """What it printed, errors included."""


class Attempts:
    def __init__(self, python: Path) -> None:
        environ = {
            **os.environ,
            "PYTHONPATH": str(Path(lorry.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [python, PROGRAMS / "forker.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True
        )

    def run(
        self,
        folder: Path,
        *,
        program: str = "tiny",
        kill_after: float | None = None,
        fault: str = "",
        warm: bool = False,
        **options: Any,
    ) -> Ended:
        """One attempt. `kill_after`: seconds until SIGKILL; `fault`: as LORRY_FAULT; `warm`: what the program imports
        is imported before the fork."""
        order = {
            "folder": str(folder),
            "program": program,
            "kill_after": kill_after,
            "fault": fault,
            "warm": warm,
            "options": options,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def finished(self, folder: Path, **options: Any) -> str:
        """Run it to its end; the digest of its final weights."""
        ended = self.run(folder, **options)
        assert ended.status == 0, ended.said
        return digest(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


PACKAGES = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "tokenizers==0.23.3",
    "safetensors==0.8.0",
    "numpy==2.4.6",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "datasets==5.2.0",
    "trl==1.16.0",
)


@pytest.fixture(scope="session")
def torch_python(request: pytest.FixtureRequest) -> Path:
    """A Python with torch: an image's environment, built by Lorry and kept between test runs. LORRY_TEST_TORCH_PYTHON
    names one that is there already."""
    given = os.environ.get("LORRY_TEST_TORCH_PYTHON")
    if given:
        return Path(given)
    uv = Path(sys.executable).parent / "uv"
    cache = getattr(request.config, "cache", None)
    root = cache.mkdir("images") if cache else Path("images")
    builder = ImageBuilder(root, DirectRunner(), str(uv) if uv.exists() else shutil.which("uv") or "uv")
    spec = ImageSpec(base=ImageBase.DEBIAN_SLIM, python=sys.executable, installs=(PipInstall(packages=PACKAGES),))
    return Path(
        asyncio.run(
            builder.ensure(spec, client_index_settings(os.environ, Path.home(), Path(sys.prefix)), lambda line: None)
        ).python
    )


@pytest.fixture(scope="module")
def attempts(torch_python: Path) -> Iterator[Attempts]:
    """A process that has imported torch and forks one process per attempt."""
    with Attempts(torch_python) as driver:
        yield driver
