"""Control groups: version 2 with a folder in its place, the real ones of this machine, and the search."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sandbox_box import Box, run_forbidding

from lorry.sandbox.cgroups import GroupV1, GroupV2, NoGroup, open_group
from lorry.sandbox.interface import Feature, SandboxSpec
from lorry.sandbox.limits import LimitsV2, _cgroup_mounts, _own_groups, find_limits

SPEC = SandboxSpec(
    container_id="ct-1",
    argv=("x",),
    env=(),
    folder="/nonexistent",
    memory_limit=64,
    pids_limit=10,
    cpu_shares=2.0,
    cpu_limit=0.5,
)


def test_version_2_writes_the_limits_of_a_container(tmp_path: Path) -> None:
    limits = LimitsV2(tmp_path, ["memory", "pids", "cpu"])
    group = limits.make(SPEC)
    assert (group.joins, group.clone_into) == ([], str(tmp_path / "ct-1"))
    written = {path.name: path.read_text() for path in (tmp_path / "ct-1").iterdir()}
    assert written == {
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "12",
        "cpu.weight": "200",
        "cpu.max": "50000 100000",
    }


def test_version_2_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    files = {
        "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n",
        "memory.peak": "1048576\n",
        "memory.current": "3000000\n",
        "memory.stat": "anon 5\ninactive_file 1000000\n",
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    group = GroupV2(tmp_path)
    assert group.oom_kills() == 2
    assert group.peak() == 1 << 20
    assert group.usage(1) == (2.5, 2_000_000)


def test_missing_files_count_as_nothing(tmp_path: Path) -> None:
    for group in (GroupV2(tmp_path / "gone"), GroupV1({"memory": tmp_path / "gone"}), NoGroup()):
        assert (group.oom_kills(), group.peak()) == (0, 0)
        assert group.remove()


def test_a_group_is_found_again_by_its_directories(tmp_path: Path) -> None:
    for group in (GroupV2(tmp_path), GroupV1({"memory": tmp_path / "a", "pids": tmp_path / "b"}), NoGroup()):
        again = open_group(group.directories)
        assert type(again) is type(group)
        assert again.directories == group.directories


def test_hierarchies_and_own_groups_are_read_from_proc() -> None:
    mounts = (
        "30 29 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
        "31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n"
        "32 29 0:28 /outer /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "33 29 254:0 / / rw - ext4 /dev/vda rw\n"
    )
    assert dict(_cgroup_mounts(mounts)) == {
        "": ("/", Path("/sys/fs/cgroup/unified")),
        "cpu": ("/", Path("/sys/fs/cgroup/cpu,cpuacct")),
        "cpuacct": ("/", Path("/sys/fs/cgroup/cpu,cpuacct")),
        "memory": ("/outer", Path("/sys/fs/cgroup/memory")),
    }
    assert _own_groups("4:cpu,cpuacct:/a\n0::/user.slice\n") == {
        "cpu": "/a",
        "cpuacct": "/a",
        "": "/user.slice",
    }


def test_groups_of_dead_containers_are_removed_and_living_ones_are_not(tmp_path: Path) -> None:
    limits = LimitsV2(tmp_path, [])
    (tmp_path / "dead").mkdir()
    (tmp_path / "alive").mkdir()
    (tmp_path / "alive/cgroup.procs").write_text("1")  # a folder with a file stays, as a busy group does
    (tmp_path / "being started").mkdir()
    for old in ("dead", "alive"):
        os.utime(tmp_path / old, (0, 0))
    limits.remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "being started"]


def test_the_limits_of_this_machine_can_be_made_and_removed() -> None:
    limits = find_limits()
    if Feature.MEMORY_LIMIT not in limits.features:
        pytest.skip("control groups are not writable here")
    group = limits.make(SPEC)
    assert group.directories
    assert group.usage(1)[1] >= 0
    assert group.remove()
    assert group.remove()


@pytest.mark.parametrize("clone3_errno", [None, 38])
def test_a_sandbox_is_born_in_its_version_2_group(isolated: Box, clone3_errno: int | None) -> None:
    """Even a hierarchy without controllers, as beside version 1, can be joined and killed as a whole."""
    top = next((Path(m[1]) for c, m in _cgroup_mounts(Path("/proc/self/mountinfo").read_text()) if not c), None)
    base = (top or Path("/nonexistent")) / f"lorry-test-{os.getpid()}"
    try:
        base.mkdir()
    except OSError:
        pytest.skip("no writable version 2 hierarchy")
    try:
        out = run_forbidding(
            {} if clone3_errno is None else {435: clone3_errno},
            BORN_IN_V2.format(base=base, box=isolated.base),
        )
    finally:
        for group in base.iterdir():
            if group.is_dir():
                group.rmdir()
        base.rmdir()
    assert out.split() == ["born", "there", "killed"]


BORN_IN_V2 = """
import asyncio
from pathlib import Path
from sandbox_box import Box, next_line
from lorry.sandbox.limits import LimitsV2
from lorry.sandbox.namespaces import NamespaceSandbox
async def main():
    box = Box("namespaces", Path("{box}"))
    box.sandbox = NamespaceSandbox(LimitsV2(Path("{base}"), []))
    code = "import signal; print('born'); signal.pause()"
    process = await box.start(code)
    print(await next_line(process.outputs[0]))
    members = Path(process._group.path, "cgroup.procs").read_text().split()
    print("there" if len(members) == 2 and str(process.pid) in members else members)
    process._group.kill()
    print("killed" if (await process.wait()).signal == 9 else "alive")
    process.close()
    assert not process._group.path.exists()
asyncio.run(main())
"""
