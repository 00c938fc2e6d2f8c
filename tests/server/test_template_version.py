"""What makes two functions share a template, and what that and its forks are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.sandbox.interface import Mount, SandboxSpec
from lorry.server.template_version import digest, fork_request, kept_mounts, template_sandbox, with_token

SPEC = FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"))
SANDBOX = SandboxSpec(
    container_id="ct-1",
    argv=("python", "main.py"),
    env=(("LORRY_CONTAINER_ID", "ct-1"), ("LORRY_TOKEN", "t"), ("OMP_NUM_THREADS", "2"), ("PASSWORD", "x")),
    folder="/nowhere",
    mounts=(Mount(source="/a", target="/root/m.py"),),
)


def test_two_containers_of_one_version_share_a_template() -> None:
    env = (("LORRY_CONTAINER_ID", "ct-2"), ("LORRY_TOKEN", "u"), ("OMP_NUM_THREADS", "2"), ("PASSWORD", "x"))
    other = dataclasses.replace(SANDBOX, container_id="ct-2", env=env, folder="/elsewhere")
    assert digest(SANDBOX, SPEC) == digest(other, dataclasses.replace(SPEC, timeout=7.0, tag="g"))


@pytest.mark.parametrize(
    ("sandbox", "spec"),
    [
        ({"env": (*SANDBOX.env[:3], ("PASSWORD", "y"))}, {}),
        ({"mounts": (Mount(source="/b", target="/root/m.py"),)}, {}),
        ({"block_network": True}, {}),
        ({"memory_limit": 512}, {}),
        ({}, {"code": CodeRef(module="m", qualname="g")}),
        ({}, {"parameters": "eA=="}),
    ],
)
def test_whatever_the_import_can_see_is_part_of_the_version(sandbox: dict[str, Any], spec: dict[str, Any]) -> None:
    changed = digest(dataclasses.replace(SANDBOX, **sandbox), dataclasses.replace(SPEC, **spec))
    assert changed != digest(SANDBOX, SPEC)


def test_a_template_has_one_thread_and_nothing_of_a_container() -> None:
    made = template_sandbox(SANDBOX, "tp-1", "secret", Path("/t"))
    env = dict(made.env)
    assert (env["OMP_NUM_THREADS"], env["LORRY_CONTAINER_ID"], env["LORRY_TOKEN"]) == ("1", "tp-1", "secret")
    assert made.template
    assert not made.gpus


def test_only_outermost_mounts_in_private_folders_are_kept() -> None:
    targets = ["/root/a", "/root/a/b", "/root/ab", "/data", "/tmp/x/y", "/var/tmp/z", "/rooted"]
    mounts = tuple(Mount(source="/s", target=target) for target in targets)
    kept = kept_mounts(dataclasses.replace(SANDBOX, mounts=mounts))
    assert kept == ["/root/a", "/root/ab", "/tmp/x/y", "/var/tmp/z"]


@pytest.mark.parametrize(("setting", "threads"), [("2", 2), ("4,2", 4), ("", 1), ("auto", 1), ("0", 1)])
def test_a_fork_is_told_what_its_template_does_not_have(setting: str, threads: int) -> None:
    wanted = with_token(dataclasses.replace(SANDBOX, env=(*SANDBOX.env, ("OMP_NUM_THREADS", setting))), "new")
    request = fork_request(wanted, template_sandbox(SANDBOX, "tp-1", "secret", Path("/t")), [(4, 0)], 1000)
    assert request["env"] == {"LORRY_CONTAINER_ID": "ct-1", "LORRY_TOKEN": "new"} | (
        {} if setting == "1" else {"OMP_NUM_THREADS": setting}
    )
    assert request["threads"] == threads
    assert request["shm_mib"] == 500
