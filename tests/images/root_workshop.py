"""A builder of images with roots of their own, whose sandbox only notes what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from archive_factory import entry, layer, write_oci

from lorry.clock import ManualClock
from lorry.images.archive import read_archive
from lorry.images.builder import BuiltImage, ImageBuilder
from lorry.images.indexes import IndexSettings
from lorry.images.rooted import BuildInputs
from lorry.images.runner import DirectRunner, RootCommand
from lorry.model.image import BuildStep, ImageBase, ImageSpec, StepKind


class NotingRunner(DirectRunner):
    """Answers the question for Python, and writes a file for every other command."""

    def __init__(self, reason: str = "", before: Callable[[RootCommand], object] = lambda command: None) -> None:
        self.reason = reason
        self.before = before
        self.commands: list[RootCommand] = []
        self.status = 0

    def no_roots(self) -> str:
        return self.reason

    async def own(self, path: str) -> None:
        return

    async def run_in_root(self, command: RootCommand, on_line: Callable[[str], None]) -> int:
        if "lorry-python" in " ".join(command.argv):
            on_line("lorry-python: /usr/bin/python3 3.11")
            return 0
        self.commands.append(command)
        waiting = self.before(command)
        if hasattr(waiting, "__await__"):
            await waiting
        target = command.upper or next(path for path, inside in command.writable if inside == "/mnt")
        Path(target, "made").write_text(" ".join(command.argv))
        for line in f"the secret is {command.env.get('TOKEN')}".split("\n"):
            on_line(line)
        return self.status


def steps(*words: str) -> tuple[BuildStep, ...]:
    return tuple(BuildStep(kind=StepKind.COMMANDS, words=(word,)) for word in words)


class Site:
    def __init__(self, folder: Path, runner: NotingRunner | None = None) -> None:
        self.folder = folder
        self.runner = runner or NotingRunner()
        self.log: list[str] = []
        self.secret = "s3cr3t-value"
        self.archive = write_oci(folder / "image.tar", [layer([entry("etc/x", b"1")])], Env=["PATH=/bin", "A=b"])

    def spec(self, *more: BuildStep, **changes: object) -> ImageSpec:
        digest = read_archive(str(self.archive)).digest
        spec = ImageSpec(base=ImageBase.OCI_ARCHIVE, archive=str(self.archive), archive_digest=digest, steps=more)
        return replace(spec, **changes)  # type: ignore[arg-type]

    def builder(self, clock: ManualClock | None = None, runner: object = None) -> ImageBuilder:
        builder = ImageBuilder(self.folder / "images", runner or self.runner, "/bin/true", clock=clock)  # type: ignore[arg-type]

        def secrets(ids: Sequence[str]) -> Mapping[str, str]:
            return {"TOKEN": self.secret} if ids else {}

        builder.supply(BuildInputs(blob=Path, tree=lambda files: self.folder, secrets=secrets))
        return builder

    async def ensure(self, builder: ImageBuilder, spec: ImageSpec) -> BuiltImage:
        return await builder.ensure(spec, IndexSettings(), self.log.append)

    def folders(self) -> set[str]:
        return {path.name for path in (self.folder / "images/layers").iterdir() if path.suffix != ".json"}
