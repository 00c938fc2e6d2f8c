"""Layers, their names and their life, with a runner that only notes what it was asked."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from archive_factory import entry, layer, write_oci
from root_workshop import NotingRunner, Site, steps

from lorry.errors import ImageBuildError
from lorry.images import build_log
from lorry.images.builder import BuiltImage
from lorry.images.debian import bootstrap_command, machine_mirror, release_for
from lorry.images.rooted_digest import rooted_digest
from lorry.images.runner import DirectRunner, RootCommand
from lorry.images.shelf import Shelf, StoredImage
from lorry.model.image import BuildStep, ImageBase, ImageFile, ImageSpec, PipInstall, StepKind


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


def test_different_images_are_built_side_by_side(site: Site) -> None:
    async def both() -> None:
        together = asyncio.Barrier(2)
        site.runner.before = lambda command: together.wait() if command.lower else None
        async with asyncio.timeout(10):
            await asyncio.gather(*(site.ensure(site.builder(), site.spec(*steps(word))) for word in "ab"))

    asyncio.run(both())


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


def test_a_secret_of_several_lines_is_hidden_line_by_line(site: Site) -> None:
    site.secret = "first-half\n second-half \nend"
    secret = BuildStep(kind=StepKind.COMMANDS, words=("use",), secret_ids=("se-1",))
    asyncio.run(site.ensure(site.builder(), site.spec(secret)))
    assert "half" not in "".join(site.log)
    assert "end" in site.log[-1], "shorter than what is hidden"


def test_a_password_in_a_command_is_in_no_error_and_in_no_title(site: Site) -> None:
    async def fail() -> None:
        builder = site.builder()
        await site.ensure(builder, site.spec(*steps("curl https://me:pass-word@host")))
        assert "pass-word" not in repr(await builder.layers()) + "".join(site.log)
        site.runner.status = 1
        with pytest.raises(ImageBuildError, match="step 1 of 1") as caught:
            await site.ensure(builder, site.spec(*steps("wget https://me:pass-word@host")))
        assert "pass-word" not in str(caught.value)

    asyncio.run(fail())


def test_a_disk_without_room_for_the_log_ends_no_build(site: Site) -> None:
    builder, spec = site.builder(), site.spec(*steps("a"))

    async def build() -> BuiltImage:
        await builder.sweep()
        (site.folder / "images/logs" / f"{await builder.digest(spec)}.log").symlink_to("/dev/full")
        return await site.ensure(builder, spec)

    assert asyncio.run(build()).build_seconds > 0
    assert any("step 1 of 1" in line for line in site.log)


def test_a_disk_that_is_full_is_a_sentence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shelf: Shelf, image: StoredImage) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.json")

    monkeypatch.setattr(Shelf, "publish", full)
    with pytest.raises(ImageBuildError, match=r"No space left.*`lorry prune` frees it"):
        asyncio.run(site.ensure(site.builder(), site.spec()))


def test_a_log_without_end_is_cut_on_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_log, "MOST_KEPT", 100)
    built = asyncio.run(site.ensure(site.builder(), site.spec(*steps(*map(str, range(20))))))
    kept = (site.folder / "images/logs" / f"{built.digest}.log").read_text()
    assert len(kept) < 200
    assert kept.endswith("(the rest was left out)\n")
    assert any("step 20 of 20" in line for line in site.log), "whoever waits sees all of it"


def test_an_archive_that_the_unprivileged_user_cannot_read_is_named_with_the_way(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    spec = site.spec()
    site.archive.chmod(0o600)
    with pytest.raises(ImageBuildError, match=f"chmod a\\+r {site.archive}"):
        asyncio.run(site.ensure(site.builder(), spec))


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
        (
            "debian.sources",
            "Types: deb\nURIs: http://mirror.corp/debian/\nSuites: bookworm\nComponents: main\nSigned-By: {key}\n",
        ),
        ("corp.list", "deb [arch=amd64 signed-by={key}] http://mirror.corp/debian bookworm main\n"),
    ],
)
def test_packages_come_from_the_mirror_of_this_machine(name: str, text: str, tmp_path: Path) -> None:
    key = tmp_path / "corp.gpg"
    key.touch()
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("# nothing\ndeb-src http://wrong/debian bookworm main\n")
    (tmp_path / "sources.list.d" / name).write_text(text.format(key=key))
    security = "Types: deb\nURIs: http://security.corp/debian-security\nSuites: bookworm-security\nComponents: main\n"
    other = f"{security}\nTypes: deb\nURIs: https://tools/x\nSuites: nodistro\nComponents: main\n"
    (tmp_path / "sources.list.d" / "other.sources").write_text(other)
    mirror = machine_mirror(tmp_path)
    assert (mirror.main, mirror.security, mirror.keyring) == (
        "http://mirror.corp/debian",
        "http://security.corp/debian-security",
        str(key),
    )
    words = bootstrap_command("bookworm", mirror, "/mnt")
    assert f"deb [signed-by={key}] http://mirror.corp/debian bookworm main" in words


@pytest.mark.parametrize("mirror", ["http://m/debian bookworm", "http://m/proxy bookworm bookworm-updates"])
def test_a_repository_of_somebody_else_for_a_debian_release_is_no_mirror(mirror: str, tmp_path: Path) -> None:
    uri, *suites = mirror.split()
    (tmp_path / "sources.list.d").mkdir()
    lines = ["deb https://download.corp/linux/debian bookworm stable", "deb https://tools.corp/cli bookworm main"]
    (tmp_path / "sources.list.d/a.list").write_text("\n".join(lines))
    (tmp_path / "sources.list.d/b.list").write_text("\n".join(f"deb {uri} {suite} main" for suite in suites))
    assert machine_mirror(tmp_path).main == uri


def test_a_machine_that_is_no_debian_asks_debian_s_own_servers(tmp_path: Path) -> None:
    assert machine_mirror(tmp_path).main == "http://deb.debian.org/debian"


def test_an_archive_s_environment_is_kept_with_the_image(site: Site) -> None:
    built = asyncio.run(site.ensure(site.builder(), site.spec()))
    stored = json.loads((site.folder / "images/images" / f"{built.digest}.json").read_text())
    assert stored["env"] == {"A": "b", "PATH": "/bin"}
    assert len(stored["layers"]) == 1
