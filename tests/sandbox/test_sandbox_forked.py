"""How the processes of a container are found that a template has forked."""

from __future__ import annotations

import os
import subprocess

import pytest

from lorry.sandbox.forked import _hold_namespace, _same
from lorry.sandbox.procfs import start_of

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
