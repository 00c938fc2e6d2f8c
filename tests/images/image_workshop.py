"""A builder on a folder of its own, fed by wheels that the tests make."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wheel_factory import write_wheel

from lorry.images.builder import BuiltImage, ImageBuilder
from lorry.images.indexes import IndexSettings
from lorry.images.runner import DirectRunner
from lorry.model.image import ImageBase, ImageSpec, PipInstall

UV = str(Path(sys.executable).parent / "uv")
if not Path(UV).exists():
    UV = shutil.which("uv") or UV


def image(*installs: PipInstall, base: ImageBase = ImageBase.DEBIAN_SLIM) -> ImageSpec:
    return ImageSpec(base=base, python=sys.executable, installs=installs)


def packages(*names: str, **options: object) -> ImageSpec:
    return image(PipInstall(packages=names, **options))  # type: ignore[arg-type]


@dataclass
class Workshop:
    folder: Path
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            write_wheel(self.wheels, name, requires=["alpha"] if name == "beta" else [])

    @property
    def root(self) -> Path:
        return self.folder / "images"

    @property
    def wheels(self) -> Path:
        return self.folder / "wheels"

    @property
    def settings(self) -> IndexSettings:
        return IndexSettings(env={"UV_FIND_LINKS": str(self.wheels), "UV_NO_INDEX": "1"})

    def builder(self, runner: object = None) -> ImageBuilder:
        return ImageBuilder(self.root, runner or DirectRunner(), UV)  # type: ignore[arg-type]

    async def ensure(self, builder: ImageBuilder, spec: ImageSpec) -> BuiltImage:
        return await builder.ensure(spec, self.settings, self.log.append)


class GatedRunner:
    """The real runner, which calls `before(argv)` first and notes what it was asked."""

    def __init__(self, before: Callable[[Sequence[str]], object] = lambda argv: None) -> None:
        self.before = before
        self.commands: list[Sequence[str]] = []
        self.readable: set[str] = set()
        self.writable: set[str] = set()
        self.environments: list[Mapping[str, str]] = []

    async def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        writable: Sequence[str],
        readable: Sequence[str],
        on_line: Callable[[str], None],
    ) -> int:
        self.commands.append(argv)
        self.environments.append(env)
        self.readable |= set(readable)
        self.writable |= set(writable)
        waiting = self.before(argv)
        if hasattr(waiting, "__await__"):
            await waiting
        return await DirectRunner().run(argv, env, writable, readable, on_line)

    def installs(self) -> int:
        return sum(list(argv[1:3]) == ["pip", "install"] for argv in self.commands)
