"""What is refused when an app loads, because this machine's sandbox cannot give it; and what adoption needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorry.errors import InvalidError
from lorry.model.function import CodeRef, FunctionKind, FunctionSpec, Resources
from lorry.sandbox.limits import NoLimits
from lorry.sandbox.namespaces import NamespaceSandbox
from lorry.sandbox.process import ProcessSandbox
from lorry.server.provision import HIDDEN, Provision
from lorry.storage.secrets import SecretBox


def spec(**fields: Any) -> FunctionSpec:
    return FunctionSpec(tag="f", kind=FunctionKind.FUNCTION, code=CodeRef(module="m", qualname="f"), **fields)


def provision(sandbox: Any) -> Provision:
    made = Provision.__new__(Provision)
    made._sandbox = sandbox
    return made


@pytest.mark.parametrize("sandbox", [NamespaceSandbox(NoLimits()), ProcessSandbox(NoLimits())], ids=lambda s: s.name)
def test_a_cpu_limit_without_control_groups_is_refused_when_the_app_loads(sandbox: Any) -> None:
    with pytest.raises(InvalidError, match="function 'f': .*cpu"):
        provision(sandbox).refuse(spec(resources=Resources(cpu=1.0, cpu_limit=2.0)))
    provision(sandbox).refuse(spec(resources=Resources(cpu=1.0, memory=100, memory_limit=200)))


def test_the_process_tier_refuses_a_blocked_network_when_the_app_loads() -> None:
    with pytest.raises(InvalidError, match="network"):
        provision(ProcessSandbox(NoLimits())).refuse(spec(block_network=True))


def test_values_to_hide_are_kept_sealed_for_who_adopts_the_container(tmp_path: Path) -> None:
    made = provision(None)
    made.secrets = SecretBox(tmp_path / "key")
    container: Any = SimpleNamespace(container_id="ct-1", folder=tmp_path, hidden=("first-value", "second-value"))
    made._note_hidden(container)
    assert b"first-value" not in (tmp_path / HIDDEN).read_bytes()
    assert made.hidden(container) == ("first-value", "second-value")
    (tmp_path / HIDDEN).write_bytes(b"changed")
    assert made.hidden(container) == ()
    (tmp_path / HIDDEN).unlink()
    assert made.hidden(container) == ()
