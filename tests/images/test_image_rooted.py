"""Layers, their names and their life, with a runner that only notes what it was asked."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from archive_factory import entry, layer, write_oci

from lorry.clock import ManualClock
from lorry.errors import ImageBuildError
from lorry.images.archive import read_archive
from lorry.images.builder import BuiltImage, ImageBuilder
from lorry.images.debian import bootstrap_command, machine_mirror, release_for
from lorry.images.indexes import IndexSettings
from lorry.images.rooted import BuildInputs
from lorry.images.rooted_digest import rooted_digest
from lorry.images.runner import DirectRunner, RootCommand
from lorry.model.image import BuildStep, ImageBase, ImageFile, ImageSpec, PipInstall, StepKind


class NotingRunner(DirectRunner):
    """Answers the question for Python, and writes a file for every other command."""

    def __init__(self, reason: str = "", before: Callable[[RootCommand], object] = lambda command: None) -> None:
        self.reason = reason
        self.before = before
        self.commands: list[RootCommand] = []

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
        on_line(f"the secret is {command.env.get('TOKEN')}")
        return 0


def steps(*words: str) -> tuple[BuildStep, ...]:
    return tuple(BuildStep(kind=StepKind.COMMANDS, words=(word,)) for word in words)


class Site:
    def __init__(self, folder: Path, runner: NotingRunner | None = None) -> None:
        self.folder = folder
        self.runner = runner or NotingRunner()
        self.log: list[str] = []
        self.archive = write_oci(folder / "image.tar", [layer([entry("etc/x", b"1")])], env=["PATH=/bin", "A=b"])

    def spec(self, *more: BuildStep, **changes: object) -> ImageSpec:
        digest = read_archive(str(self.archive)).digest
        spec = ImageSpec(base=ImageBase.OCI_ARCHIVE, archive=str(self.archive), archive_digest=digest, steps=more)
        return replace(spec, **changes)  # type: ignore[arg-type]

    def builder(self, clock: ManualClock | None = None, runner: object = None) -> ImageBuilder:
        builder = ImageBuilder(self.folder / "images", runner or self.runner, "/bin/true", clock=clock)  # type: ignore[arg-type]

        def secrets(ids: Sequence[str]) -> Mapping[str, str]:
            return {"TOKEN": "s3cr3t-value"} if ids else {}

        builder.supply(BuildInputs(blob=Path, tree=lambda files: self.folder, secrets=secrets))
        return builder

    async def ensure(self, builder: ImageBuilder, spec: ImageSpec) -> BuiltImage:
        return await builder.ensure(spec, IndexSettings(), self.log.append)

    def folders(self) -> set[str]:
        return {path.name for path in (self.folder / "images/layers").iterdir() if path.suffix != ".json"}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_each_step_is_a_layer_on_the_ones_below(site: Site) -> None:
    built = asyncio.run(site.ensure(site.builder(), site.spec(*steps("one", "two"))))
    unpack, first, second = site.runner.commands
    assert "unpack" in unpack.argv
    assert (len(first.lower), len(second.lower)) == (1, 2)
    assert second.lower[1:] == first.lower
    assert built.layers[1:] == second.lower  # topmost first
    assert [Path(path, "made").exists() for path in built.layers] == [True] * 3
    assert (built.python, built.env, built.cached) == ("/usr/bin/python3", (("A", "b"), ("PATH", "/bin")), False)


def test_the_second_build_runs_nothing(site: Site) -> None:
    async def twice() -> None:
        spec = site.spec(*steps("one"))
        await site.ensure(site.builder(), spec)
        count = len(site.runner.commands)
        again = await site.ensure(site.builder(), spec)
        assert again.cached
        assert len(site.runner.commands) == count

    asyncio.run(twice())


def test_images_share_the_layers_that_they_have_in_common(site: Site) -> None:
    async def both() -> None:
        builder = site.builder()
        one = await site.ensure(builder, site.spec(*steps("a", "b")))
        two = await site.ensure(builder, site.spec(*steps("a", "c")))
        assert one.layers[1:] == two.layers[1:]
        assert one.layers[0] != two.layers[0]
        assert len(site.runner.commands) == 4

    asyncio.run(both())


def test_two_builders_of_one_image_build_it_once(site: Site) -> None:
    async def race() -> None:
        spec = site.spec(*steps("a", "b"))
        one, two = await asyncio.gather(*(site.ensure(site.builder(), spec) for _ in range(2)))
        assert one.layers == two.layers
        assert len(site.runner.commands) == 3

    asyncio.run(race())


def test_two_builders_of_one_layer_build_it_once(site: Site) -> None:
    """Different images, the same steps below."""

    async def race() -> None:
        specs = [site.spec(*steps("a", "b")), site.spec(*steps("a", "c"))]
        await asyncio.gather(*(site.ensure(site.builder(), spec) for spec in specs))
        words = [command.argv[-1] for command in site.runner.commands]
        assert len([word for word in words if word.endswith("-c a")]) == 1
        assert len(words) == 4

    asyncio.run(race())


def test_a_build_that_fails_or_is_stopped_leaves_nothing_but_whole_layers(site: Site) -> None:
    async def fail() -> None:
        def refuse(command: RootCommand) -> None:
            if command.argv[-1].endswith("-c b"):
                raise ImageBuildError("stopped")

        site.runner.before = refuse
        with pytest.raises(ImageBuildError, match="stopped"):
            await site.ensure(site.builder(), site.spec(*steps("a", "b")))
        assert len(site.folders()) == 2
        assert not list((site.folder / "images/images").iterdir())
        site.runner.before = lambda command: None
        built = await site.ensure(site.builder(), site.spec(*steps("a", "b")))
        assert len(built.layers) == 3
        assert len(site.runner.commands) == 4  # the two whole ones were taken

    asyncio.run(fail())


def test_what_a_killed_builder_left_is_swept_and_never_used(site: Site) -> None:
    async def sweep() -> None:
        spec = site.spec(*steps("a"))
        built = await site.ensure(site.builder(), spec)
        top = Path(built.layers[0])
        (top.parent / f"{top.name}.12345678/upper").mkdir(parents=True)  # an attempt
        (top.parent / f"{top.name}.json").unlink()  # renamed, and killed before the json was written
        (site.folder / "images/images" / f"{built.digest}.json").unlink()
        builder = site.builder()
        await builder.sweep()
        assert len(site.folders()) == 1
        again = await site.ensure(builder, spec)
        assert not again.cached
        assert Path(again.layers[0], "made").exists()

    asyncio.run(sweep())


def test_pruning_takes_layers_that_no_image_needs_and_no_others(site: Site) -> None:
    async def prune() -> None:
        clock = ManualClock()
        builder = site.builder(clock)
        kept = await site.ensure(builder, site.spec(*steps("a", "b")))
        gone = await site.ensure(builder, site.spec(*steps("a", "c")))
        clock.advance(10)
        before = (await builder.sizes()).total
        removed = await builder.prune({kept.digest}, 5)
        assert [image.digest for image in removed] == [gone.digest]
        assert site.folders() == {Path(path).name for path in kept.layers}
        assert (await builder.sizes()).total < before
        assert (await site.ensure(builder, site.spec(*steps("a", "b")))).cached

    asyncio.run(prune())


def test_nothing_is_collected_while_anybody_builds(site: Site) -> None:
    async def race() -> None:
        clock = ManualClock()
        other = site.builder(clock)
        stale = await site.ensure(other, site.spec(*steps("old")))
        clock.advance(100)
        started, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            started.set()
            await go_on.wait()

        site.runner.before = lambda command: wait() if command.argv[-1].endswith("-c new") else None
        building = asyncio.create_task(site.ensure(site.builder(clock), site.spec(*steps("new"))))
        await started.wait()
        await other.prune(set(), 0)
        assert Path(stale.layers[-1]).exists(), "the layer that the build under way stands on"
        go_on.set()
        built = await building
        assert all(Path(path).is_dir() for path in built.layers)

    asyncio.run(race())


def test_privileged_bits_do_not_survive_in_a_layer(site: Site) -> None:
    def write(command: RootCommand) -> None:
        if command.upper:
            Path(command.upper, "su").touch()
            Path(command.upper, "su").chmod(0o6755)

    site.runner.before = write
    built = asyncio.run(site.ensure(site.builder(), site.spec(*steps("a"))))
    assert os.stat(Path(built.layers[0], "su")).st_mode & 0o7777 == 0o755


def test_values_of_secrets_reach_the_step_and_no_log(site: Site) -> None:
    secret = BuildStep(kind=StepKind.COMMANDS, words=("use",), secret_ids=("se-1",))
    built = asyncio.run(site.ensure(site.builder(), site.spec(secret)))
    assert site.runner.commands[-1].env["TOKEN"] == "s3cr3t-value"
    assert "TOKEN" not in site.runner.commands[0].env
    assert any("****" in line for line in site.log)
    kept = (site.folder / "images/logs" / f"{built.digest}.log").read_text()
    assert "s3cr3t" not in kept + "".join(site.log)


def test_where_no_root_can_be_made_the_ways_are_named(site: Site) -> None:
    runner = NotingRunner("the user joe has no subordinate ids")
    with pytest.raises(ImageBuildError, match=r"joe has no subordinate ids.*as root.*uv_pip_install alone"):
        asyncio.run(site.ensure(site.builder(runner=runner), site.spec()))
    with pytest.raises(ImageBuildError, match=r"tier `namespaces`.*lorry doctor"):
        asyncio.run(site.ensure(site.builder(runner=DirectRunner()), site.spec()))


def test_an_archive_that_changed_is_noticed(site: Site) -> None:
    spec = site.spec()
    write_oci(site.archive, [layer([entry("etc/x", b"2")])])
    with pytest.raises(ImageBuildError, match="has changed since"):
        asyncio.run(site.ensure(site.builder(), spec))


def test_what_decides_the_name(site: Site) -> None:
    base = site.spec(*steps("a"))
    command = base.steps[0]
    file = ImageFile(path="/x", digest="d1")
    copied = BuildStep(kind=StepKind.FILES, files=(file,))
    different = [
        base,
        replace(base, steps=steps("b")),
        replace(base, steps=steps("a", "a")),
        replace(base, archive_digest="sha256:other"),
        replace(base, python_version="3.13"),
        replace(base, steps=(replace(command, env=(("A", "1"),)),)),
        replace(base, steps=(replace(command, workdir="/tmp"),)),
        replace(base, steps=(replace(command, secret_ids=("name:hub",)),)),
        replace(base, steps=(copied,)),
        replace(base, steps=(replace(copied, files=(replace(file, digest="d2"),)),)),
        replace(base, steps=(BuildStep(kind=StepKind.APT, words=("a",)),)),
        replace(base, steps=(BuildStep(kind=StepKind.FUNCTION, key="k"),)),
        replace(base, steps=(BuildStep(kind=StepKind.PIP),), installs=(PipInstall(packages=("six",)),)),
        replace(base, steps=(BuildStep(kind=StepKind.PIP),), installs=(PipInstall(packages=("attrs",)),)),
        ImageSpec(base=ImageBase.DEBIAN_ROOT, python_version="3.11"),
        ImageSpec(base=ImageBase.DEBIAN_ROOT, python_version="3.13"),
    ]
    assert len({rooted_digest(spec) for spec in different}) == len(different)
    same = [
        replace(base, archive="/elsewhere.tar"),
        replace(base, python="/usr/bin/python3"),
        replace(base, env=(("APPLIED", "at start"),)),
        replace(base, files=(file,)),
    ]
    assert {rooted_digest(spec) for spec in same} == {rooted_digest(base)}
    function = BuildStep(kind=StepKind.FUNCTION, key="k", payload="p1")
    payloads = [replace(base, steps=(replace(function, payload=payload),)) for payload in ("p1", "p2")]
    assert rooted_digest(payloads[0]) == rooted_digest(payloads[1])


def test_the_release_is_the_one_that_has_the_python() -> None:
    assert [release_for(version) for version in ("3.11", "3.12", "3.13", "3.14")] == [
        "bookworm",
        "trixie",
        "trixie",
        "trixie",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("debian.sources", "Types: deb\nURIs: http://mirror.corp/debian/\nSuites: bookworm\nSigned-By: {key}\n"),
        ("corp.list", "deb [arch=amd64 signed-by={key}] http://mirror.corp/debian bookworm main\n"),
    ],
)
def test_packages_come_from_the_mirror_of_this_machine(name: str, text: str, tmp_path: Path) -> None:
    key = tmp_path / "corp.gpg"
    key.touch()
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("# nothing\ndeb-src http://wrong/debian bookworm main\n")
    (tmp_path / "sources.list.d" / name).write_text(text.format(key=key))
    security = "Types: deb\nURIs: http://security.corp/debian-security\nSuites: bookworm-security\n"
    other = f"{security}\nTypes: deb\nURIs: https://tools/x\nSuites: nodistro\n"
    (tmp_path / "sources.list.d" / "other.sources").write_text(other)
    mirror = machine_mirror(tmp_path)
    assert (mirror.main, mirror.security, mirror.keyring) == (
        "http://mirror.corp/debian",
        "http://security.corp/debian-security",
        str(key),
    )
    words = bootstrap_command("bookworm", mirror, "/mnt")
    assert f"deb [signed-by={key}] http://mirror.corp/debian bookworm main" in words


def test_a_machine_that_is_no_debian_asks_debian_s_own_servers(tmp_path: Path) -> None:
    assert machine_mirror(tmp_path).main == "http://deb.debian.org/debian"


def test_an_archive_s_environment_is_kept_with_the_image(site: Site) -> None:
    built = asyncio.run(site.ensure(site.builder(), site.spec()))
    stored = json.loads((site.folder / "images/images" / f"{built.digest}.json").read_text())
    assert stored["env"] == {"A": "b", "PATH": "/bin"}
    assert len(stored["layers"]) == 1
