"""The plan of a root file system, and what the launcher may import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorry.errors import InvalidError
from lorry.sandbox import spawn
from lorry.sandbox.interface import Mount, SandboxSpec
from lorry.sandbox.rootfs import NODEV, NOSUID, RDONLY, Step, plan


def plan_for(tmp_path: Path, *mounts: Mount, gpus: tuple[int, ...] = ()) -> list[Step]:
    spec = SandboxSpec(container_id="ct-1", argv=("x",), env=(), folder=str(tmp_path), mounts=mounts, gpus=gpus)
    return plan(spec, shm_mib=64)


def test_mounts_come_last_and_in_order(tmp_path: Path) -> None:
    mounts = [Mount(source="/usr", target="/b", read_only=False), Mount(source="/usr", target="/a")]
    assert plan_for(tmp_path, *mounts)[-2:] == [
        ("bind", "/b", "/usr", NOSUID | NODEV),
        ("bind", "/a", "/usr", RDONLY | NOSUID | NODEV),
    ]


def test_only_home_and_tmp_are_bound_writable(tmp_path: Path) -> None:
    writable = {
        target
        for verb, target, _, flags in plan_for(tmp_path)
        if verb == "bind" and not flags & RDONLY and not target.startswith("/dev/")
    }
    assert writable == {"/root", "/tmp", "/var/tmp"}


def test_without_gpus_there_is_no_gpu_device(tmp_path: Path) -> None:
    assert not [target for _, target, _, _ in plan_for(tmp_path) if "nvidia" in target or target == "/sys"]


@pytest.mark.parametrize("target", ["data", "/data/../etc", "/data/", "//data", "/", "/proc/x", "/dev", "/etc"])
def test_a_target_that_cannot_work_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(InvalidError, match="cannot mount"):
        plan_for(tmp_path, Mount(source="/usr", target=target))


def test_a_missing_source_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="/no/such/source does not exist"):
        plan_for(tmp_path, Mount(source="/no/such/source", target="/data"))


def test_the_launcher_imports_only_a_few_standard_modules() -> None:
    """Its start is part of every cold start; its first process stays in memory as long as the container."""
    source = spawn.SOURCE.replace("main()", "") + "print(*sys.modules)"
    out = subprocess.check_output([sys.executable, "-I", "-S", "-c", source], text=True)
    loaded = set(out.split())
    assert not loaded & {
        "typing",
        "enum",
        "json",
        "re",
        "signal",
        "subprocess",
        "socket",
        "lorry",
        "warnings",
    }
