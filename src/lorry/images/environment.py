"""Making one environment: venv, layers, seal. Knows nothing of locks, waiters or what was built before."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorry.images.disk import seal
from lorry.images.failure import LogTail, build_error
from lorry.images.indexes import IndexSettings
from lorry.images.interpreter import Interpreter
from lorry.images.recipe import base_environment, layer_command
from lorry.images.runner import BuildRunner
from lorry.images.shelf import Shelf
from lorry.model.image import ImageSpec

_NOISE = re.compile(r"Using (?:C?Python|PyPy)|Creating virtual environment|Activate with|Audited |Checked \d+ pack")
_FROZEN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:==| @ )(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class UvTool:
    """uv on the paths of one shelf."""

    runner: BuildRunner
    uv: str
    shelf: Shelf
    search_path: str

    async def run(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        readable: Sequence[str],
        on_line: Callable[[str], None],
    ) -> int:
        own = base_environment(str(self.shelf.cache), str(self.shelf.home), self.search_path)
        return await self.runner.run(
            [self.uv, *arguments], {**env, **own}, (str(self.shelf.uv),), (self.uv, *readable), on_line
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentBuild:
    tool: UvTool
    name: str
    """Of the folders under `uv/` and `recipes/`."""
    spec: ImageSpec
    interpreter: Interpreter
    settings: IndexSettings
    emit: Callable[[str], None] = field(repr=False)
    """Gets lines that may still hold credentials, and returns nothing: the caller redacts."""
    redact: Callable[[str], str] = field(repr=False)

    @property
    def environment(self) -> Path:
        return self.tool.shelf.uv / self.name

    async def run(self) -> tuple[dict[str, str], int]:
        """Packages and size. Raises ImageBuildError."""
        await self._step("making the environment", self._venv(), {}, (), self.emit)
        for number in range(len(self.spec.installs)):
            await self._install(number)
        packages = await self._freeze()
        return packages, await asyncio.to_thread(seal, self.environment)

    def _venv(self) -> list[str]:
        return ["venv", "--no-project", "--python", self.interpreter.base_executable, str(self.environment)]

    async def _install(self, number: int) -> None:
        layer = layer_command(self.spec, number, self.settings)
        self.emit(layer.title)
        path = self.tool.shelf.recipes / self.name / f"layer-{number + 1}.txt"
        path.write_text(layer.requirements, encoding="utf-8")
        arguments = ["pip", "install", "--python", self._python(), *layer.options, "-r", str(path)]
        readable = (*self.settings.readable, *layer.readable)
        await self._step(layer.title, arguments, layer.env, readable, self.emit)

    async def _freeze(self) -> dict[str, str]:
        lines: list[str] = []
        await self._step("listing packages", ["pip", "freeze", "--python", self._python()], {}, (), lines.append)
        return {match[1]: self.redact(match[2]) for line in lines if (match := _FROZEN.match(line))}

    async def _step(
        self,
        title: str,
        arguments: Sequence[str],
        env: Mapping[str, str],
        readable: Sequence[str],
        on_line: Callable[[str], None],
    ) -> None:
        tail = LogTail()

        def told(line: str) -> None:
            if not _NOISE.match(line):
                tail.add(self.redact(line))
                on_line(line)

        status = await self.tool.run(arguments, env, (*self._always_readable(), *readable), told)
        if status:
            raise build_error(title, status, tail)

    def _always_readable(self) -> tuple[str, ...]:
        interpreter = self.interpreter
        recipe = self.tool.shelf.recipes / self.name
        return (interpreter.base_prefix, interpreter.base_executable, str(recipe))

    def _python(self) -> str:
        return str(self.environment / "bin" / "python")
