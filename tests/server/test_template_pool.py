"""Which templates are kept, and what makes two functions share one."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_peers import FakePeer

from lorry.clock import ManualClock
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec
from lorry.sandbox.interface import Mount, SandboxSpec
from lorry.server import templates as module
from lorry.server.logs import LogStore
from lorry.server.templates import Template, Templates, digest, kept_mounts, template_sandbox

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


def test_the_template_that_was_used_last_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "total_memory_mib", lambda: 1000)  # of which a quarter is for templates

    async def scenario() -> None:
        clock = ManualClock()
        pool = Templates(clock, SimpleNamespace(forks=True), LogStore(tmp_path / "logs", clock, 1), tmp_path / "t")  # type: ignore[arg-type]
        killed: list[str] = []
        for name, used, size in (("old", 1.0, 100), ("new", 3.0, 120), ("middle", 2.0, 110)):
            ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
            ready.set_result({})
            process = SimpleNamespace(
                usage=lambda size=size: SimpleNamespace(memory=size), kill=lambda name=name: killed.append(name)
            )
            template = Template(
                key=name,
                template_id=f"tp-{name}",
                token="",
                app_id="",
                spec=SPEC,
                folder=tmp_path / name,
                sandbox=SANDBOX,
                hidden=(),
                used=used,
                ready=ready,
                process=process,  # type: ignore[arg-type]
                peer=FakePeer(),  # type: ignore[arg-type]
            )
            pool._by_key[name] = template
        pool.keep_to_budget()
        assert killed == ["old"]
        assert set(pool._by_key) == {"middle", "new"}

    asyncio.run(scenario())
