"""Environments built by the real uv, from wheels that the tests make."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from image_workshop import GatedRunner, Workshop, image, packages
from wheel_factory import write_index, write_wheel

from lorry.clock import ManualClock
from lorry.errors import ImageBuildError, InvalidError
from lorry.images.builder import ImageBuilder
from lorry.images.indexes import IndexSettings, client_index_settings
from lorry.images.runner import DirectRunner
from lorry.model.image import ImageBase, PipInstall

UNCHECKED_HASH = 0b01


def run_python(python: str, code: str, **options: object) -> str:
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout.strip())


def test_host_is_the_client_s_environment_as_it_is(workshop: Workshop) -> None:
    built = asyncio.run(workshop.ensure(workshop.builder(), image(base=ImageBase.HOST)))
    assert built.python == sys.executable
    assert built.prefix == (sys.prefix if sys.prefix != sys.base_prefix else None)
    assert built.base_prefix == sys.base_prefix
    assert not workshop.root.exists()


def test_host_with_packages_is_refused(workshop: Workshop) -> None:
    spec = image(PipInstall(packages=("alpha",)), base=ImageBase.HOST)
    with pytest.raises(InvalidError, match=r"debian_slim\(\)"):
        asyncio.run(workshop.ensure(workshop.builder(), spec))


def test_an_empty_image_sees_none_of_the_client_s_packages(workshop: Workshop) -> None:
    async def twice() -> None:
        builder = workshop.builder()
        first = await workshop.ensure(builder, image())
        second = await workshop.ensure(builder, image())
        assert (first.cached, second.cached) == (False, True)
        assert second.build_seconds == 0.0
        assert first.python == second.python
        found = run_python(first.python, "import importlib.util as u; print(u.find_spec('pytest'))")
        assert found == "None"
        assert run_python(first.python, "import sys; print(sys.prefix)") == first.prefix

    asyncio.run(twice())


def test_layers_are_installed_in_order_and_a_later_one_replaces(workshop: Workshop) -> None:
    write_wheel(workshop.wheels, "alpha", "2.0")
    spec = image(PipInstall(packages=("alpha==1.0",)), PipInstall(requirements="beta\nalpha==2.0  # newer\n"))
    built = asyncio.run(workshop.ensure(workshop.builder(), spec))
    assert run_python(built.python, "import alpha, beta; print(alpha.VERSION)") == "2.0"
    assert [line for line in workshop.log if line.startswith("layer")] == [
        "layer 1 of 2 (alpha==1.0)",
        "layer 2 of 2 (beta, alpha==2.0)",
    ]
    manifest = json.loads((workshop.root / "images" / f"{built.digest}.json").read_text())
    assert manifest["packages"] == {"alpha": "2.0", "beta": "1.0"}
    assert manifest["size"] > 0
    log = (workshop.root / "logs" / f"{built.digest}.log").read_text()
    assert log.splitlines() == workshop.log
    assert list((workshop.root / "recipes").iterdir()) == []


def test_scripts_carry_the_final_path(workshop: Workshop) -> None:
    built = asyncio.run(workshop.ensure(workshop.builder(), packages("alpha")))
    script = Path(built.prefix or "") / "bin" / "alpha"
    assert built.python.encode() in script.read_bytes()[:300]


def test_compiled_files_are_unchecked_and_the_cache_keeps_its_bytes(workshop: Workshop) -> None:
    async def build() -> None:
        builder = workshop.builder()
        await workshop.ensure(builder, packages("alpha"))
        before = contents(workshop.root / "uv" / "cache" / "archive-v0")
        built = await workshop.ensure(builder, packages("beta"))
        for path, content in before.items():
            assert path.read_bytes() == content
        assert not list((workshop.root / "uv" / "cache" / "archive-v0").rglob("*.pyc"))
        site = next(Path(built.prefix or "").glob("lib/python3*/site-packages"))
        compiled = sorted(site.rglob("*.pyc"))
        assert {path.parent.parent.name for path in compiled} == {"alpha", "beta"}
        for path in compiled:
            assert int.from_bytes(path.read_bytes()[4:8], "little") == UNCHECKED_HASH
            assert path.stat().st_nlink == 1
        assert (site / "alpha" / "__init__.py").stat().st_nlink > 1, "not shared with the cache"

    asyncio.run(build())


def contents(folder: Path) -> dict[Path, bytes]:
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found
    return found


def test_python_trusts_the_compiled_file_without_looking_at_the_source(workshop: Workshop) -> None:
    built = asyncio.run(workshop.ensure(workshop.builder(), packages("alpha")))
    source = next(Path(built.prefix or "").glob("lib/python3*/site-packages/alpha/__init__.py"))
    source.unlink()  # not written: it is a hard link into the cache
    source.write_text("VERSION = 'changed'\n")
    assert run_python(built.python, "import alpha; print(alpha.VERSION)") == "1.0"


def test_everything_is_readable_for_every_uid_whatever_the_server_s_umask(workshop: Workshop) -> None:
    before = os.umask(0o077)
    try:
        built = asyncio.run(workshop.ensure(workshop.builder(), packages("beta")))
    finally:
        os.umask(before)
    environment = Path(built.prefix or "")
    for path in (environment, *environment.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode in ((0o755,) if path.is_dir() else (0o644, 0o755)), path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_uid_imports_from_it_without_writing(workshop: Workshop) -> None:
    built = asyncio.run(workshop.ensure(workshop.builder(), packages("beta")))
    before = sorted(Path(built.prefix or "").rglob("*"))
    for folder in (workshop.folder, *workshop.folder.parents):
        if folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(0o755)
    # The interpreter may lie under root's home; the launcher mounts it, here the right to search is lent.
    code = (
        "import os, sys; os.setgid(65534); os.setuid(65534); sys.path.append(sys.argv[1]); "
        "import alpha, beta; print(alpha.VERSION)"
    )
    site = next(Path(built.prefix or "").glob("lib/python3*/site-packages"))
    done = subprocess.run([sys.executable, "-I", "-c", code, str(site)], capture_output=True, text=True)
    assert done.stdout == "1.0\n", done.stderr
    assert sorted(Path(built.prefix or "").rglob("*")) == before


def test_a_failed_layer_is_named_with_tail_and_hint_and_leaves_only_its_log(workshop: Workshop) -> None:
    spec = image(PipInstall(packages=("alpha",)), PipInstall(packages=("no-such-package",)))
    with pytest.raises(ImageBuildError) as caught:
        asyncio.run(workshop.ensure(workshop.builder(), spec))
    text = str(caught.value)
    assert "failed in layer 2 of 2 (no-such-package)" in text
    assert "no-such-package was not found" in text
    assert "Hint: No index has a package of that name" in text
    assert list((workshop.root / "images").iterdir()) == []
    assert [path.name for path in (workshop.root / "uv").iterdir() if "." in path.name] == []
    (log,) = (workshop.root / "logs").iterdir()
    assert "no-such-package" in log.read_text()


def test_a_source_that_does_not_compile_is_no_reason_to_fail(workshop: Workshop) -> None:
    write_wheel(workshop.wheels, "ancient", body="print 'python 2'\n")
    built = asyncio.run(workshop.ensure(workshop.builder(), packages("ancient", "alpha")))
    assert run_python(built.python, "import alpha; print('fine')") == "fine"


def test_a_missing_interpreter_is_a_sentence(workshop: Workshop) -> None:
    spec = image()
    object.__setattr__(spec, "python", str(workshop.folder / "deleted" / "bin" / "python"))
    with pytest.raises(ImageBuildError, match="deleted or moved"):
        asyncio.run(workshop.ensure(workshop.builder(), spec))


def test_an_environment_deleted_by_hand_is_built_again(workshop: Workshop) -> None:
    async def build() -> None:
        builder = workshop.builder()
        first = await workshop.ensure(builder, packages("alpha"))
        subprocess.run(["rm", "-r", str(first.prefix)], check=True)
        second = await workshop.ensure(builder, packages("alpha"))
        assert not second.cached
        assert run_python(second.python, "import alpha; print(alpha.VERSION)") == "1.0"

    asyncio.run(build())


def test_a_local_index_by_url_is_used_and_named_as_readable(workshop: Workshop, tmp_path: Path) -> None:
    write_index(tmp_path / "index", workshop.wheels)
    url = (tmp_path / "index" / "simple").as_uri()
    settings = client_index_settings({"PIP_INDEX_URL": url}, tmp_path, tmp_path)
    runner = GatedRunner()

    async def build() -> None:
        built = await workshop.builder(runner).ensure(packages("beta"), settings, workshop.log.append)
        assert run_python(built.python, "import beta; print(beta.VERSION)") == "1.0"

    asyncio.run(build())
    assert str(tmp_path / "index") in runner.readable
    assert runner.writable == {str(workshop.root / "uv")}
    assert sys.base_prefix in runner.readable


def test_a_layer_s_own_wheel_folder_is_used_and_named_as_readable(workshop: Workshop) -> None:
    odd = workshop.folder / "my, wheels"
    write_wheel(odd, "delta")
    runner = GatedRunner()
    spec = packages("delta", "alpha", find_links=(str(odd),))
    built = asyncio.run(workshop.ensure(workshop.builder(runner), spec))
    assert run_python(built.python, "import alpha, delta; print('both')") == "both"
    assert str(odd) in runner.readable


def test_nothing_of_the_server_s_environment_reaches_a_build(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "s3cr3t")
    monkeypatch.setenv("UV_INDEX_URL", "http://wrong.invalid/simple")
    runner = GatedRunner()
    asyncio.run(workshop.ensure(workshop.builder(runner), packages("alpha")))
    for env in runner.environments:
        assert "SOME_SECRET" not in env
        assert "UV_INDEX_URL" not in env


def test_prune_keeps_what_is_in_use_or_fresh_and_frees_the_cache(workshop: Workshop) -> None:
    async def build_and_prune() -> None:
        clock = ManualClock()
        builder = ImageBuilder(workshop.root, DirectRunner(), workshop.builder()._tool.uv, clock=clock)
        used, stale, fresh = packages("alpha"), packages("gamma"), packages("beta")
        in_use = await workshop.ensure(builder, used)
        gone = await workshop.ensure(builder, stale)
        await workshop.ensure(builder, fresh)
        clock.advance(100)
        assert (await workshop.ensure(builder, fresh)).cached  # asked for again: its age starts anew
        sizes = await builder.sizes()
        assert len(sizes.images) == 3
        assert sizes.total >= sizes.cache > 0
        removed = await builder.prune({in_use.digest}, older_than=50)
        assert [stored.digest for stored in removed] == [gone.digest]
        assert gone.prefix is not None
        assert not Path(gone.prefix).exists()
        assert {stored.digest for stored in await builder.list()} == set(sizes.images) - {gone.digest}
        cached = {path.name for path in (workshop.root / "uv" / "cache" / "archive-v0").glob("*/*")}
        assert "alpha" in cached
        assert "gamma" not in cached

    asyncio.run(build_and_prune())


def real_client_settings() -> IndexSettings:
    return client_index_settings(os.environ, Path.home(), Path(sys.prefix))


def ensure_or_skip_offline(workshop: Workshop, names: tuple[str, ...], options: str = "") -> list[str]:
    async def build() -> None:
        spec = packages(*names, extra_options=options)
        await workshop.builder().ensure(spec, real_client_settings(), workshop.log.append)

    try:
        asyncio.run(build())
    except ImageBuildError as error:
        if "could not be reached" in str(error):
            pytest.skip("no package index can be reached from here")
        raise
    return workshop.log


def test_real_packages_come_from_the_client_s_own_index(workshop: Workshop) -> None:
    log = ensure_or_skip_offline(workshop, ("six", "iniconfig"))
    assert any(line.startswith(" + six==") for line in log)
    assert any(line.startswith(" + iniconfig==") for line in log)


@pytest.mark.skipif(
    not list(Path("/opt/wheels").glob("torch-2.13.0+cpu-*.whl")), reason="the local torch wheel is not here"
)
def test_a_local_wheel_wins_over_the_same_version_on_the_index(workshop: Workshop) -> None:
    log = ensure_or_skip_offline(workshop, ("torch==2.13.0",), "--dry-run --no-deps")
    assert " + torch==2.13.0+cpu" in log
