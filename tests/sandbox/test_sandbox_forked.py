"""How the processes of a container are found that a template has forked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lorry.ids import new_id
from lorry.sandbox.forked import Forks, _hold_namespace, _same
from lorry.sandbox.interface import SandboxSpec
from lorry.sandbox.limits import find_limits
from lorry.sandbox.procfs import start_of
from lorry.sandbox.records import read_group
from lorry.sandbox.running import adopt
from lorry.server.folders import make_template_folder, move_into

UNSHARE = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)), "sh", "-c", "echo in; read x")


def in_a_namespace() -> subprocess.Popen[str]:
    process = subprocess.Popen(UNSHARE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "in\n":
        pytest.skip("no mount namespace can be made here")
    return process


def test_who_comes_after_a_container_is_never_taken_for_one_of_its_orphans() -> None:
    """The kernel gives the number of a mount namespace that has gone to the next one."""
    with in_a_namespace() as first:
        held = _hold_namespace(first.pid, start_of(first.pid))
        assert held is not None
        assert _same(held, str(first.pid))
        assert not _same(held, "self")
        first.communicate()
    with in_a_namespace() as second:
        assert not _same(held, str(second.pid))
        second.communicate()
    assert _hold_namespace(second.pid, 1) is None
    os.close(held)


def test_one_whose_outputs_were_taken_away_is_ended_instead_of_adopted(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        found = adopt("ct-1", str(tmp_path), process.pid, start_of(process.pid), pid_namespace=False)
        assert found is None
        assert process.wait() == -signal.SIGKILL


def test_what_the_server_believes_of_a_fork_lies_where_its_template_cannot_write(tmp_path: Path) -> None:
    template, folder = tmp_path / "tp-1", tmp_path / new_id("ct")
    make_template_folder(template)
    folder.mkdir()
    spec = SandboxSpec(container_id=folder.name, argv=(), env=(), folder=str(folder))
    prepared = Forks(find_limits(), None).prepare(spec)
    try:
        move_into(template, folder)
        files = template / "pool" / folder.name
        assert sorted(os.listdir(files)) == ["err", "exit", "home", "out", "root", "tmp"]
        (files / "cgroup").write_text(json.dumps({"memory": str(tmp_path)}))
        assert read_group(str(folder)).directories == prepared.group.directories
    finally:
        prepared.abandon()
