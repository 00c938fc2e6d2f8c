"""`lorry prune` frees what nothing uses, and never what an app may still need."""

from __future__ import annotations

import json
from pathlib import Path

import packaged
import pytest
from installation import Installation
from server_home import PROGRAMS, ServerHome
from test_faults_server import lorry_command, status
from wheel_factory import write_wheel

import lorry


def images(home: ServerHome) -> set[str]:
    """Digests of those that exist."""
    return {path.stem for path in (home.state / "images" / "images").glob("*.json")}


def prune(*options: str) -> dict[str, int]:
    done = lorry_command("prune", "--yes", "--json", *options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["freed"])


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that images are built from, without an index."""
    write_wheel(tmp_path / "wheels", "gated", body=f"FILLING = {'x' * 200_000!r}\n")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    return tmp_path / "wheels"


@pytest.mark.usefixtures("wheels")
def test_prune_removes_images_that_no_app_uses_and_keeps_the_others(own_server: ServerHome) -> None:
    with packaged.app.run():
        packaged.where.remote()
        (used_before,) = images(own_server)
        prune("--all")
        assert images(own_server) == {used_before}, "the image of a running app was removed"
        packaged.where.remote()
    packaged.plain.deploy(name="lasting")
    assert lorry.Function.from_name("lasting", "one").remote() == 1
    (deployed,) = images(own_server) - {used_before}
    for container in own_server.state.glob("containers/*"):  # idle or not: the deployment may start one at any time
        lorry_command("container", "stop", container.name)
    prune()
    assert images(own_server) == {used_before, deployed}, "what was used a moment ago is kept without --all"
    freed = prune("--all")
    assert images(own_server) == {deployed}
    assert freed["images"] > 200_000
    assert [folder.name.partition(".")[0] for folder in own_server.state.glob("images/uv/*.*")] == [deployed]
    assert lorry.Function.from_name("lasting", "one").remote() == 1


def test_prune_works_while_an_app_is_deployed_whose_environment_is_gone(own_server: ServerHome, tmp_path: Path) -> None:
    lorry_command("server", "start")
    installation = Installation(tmp_path / "deleted")
    installation.lorry("deploy", str(PROGRAMS / "journal.py"))
    installation.delete()
    assert status()["apps"] == 1
    assert "images" in prune("--all")
