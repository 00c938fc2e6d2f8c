"""Choosing a tier, and saying what stands in the way of a better one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from sandbox_box import LIMITS, run_forbidding

from lorry.errors import InvalidError, ResourceError
from lorry.sandbox import bwrap, detect
from lorry.sandbox.bwrap import BwrapSandbox
from lorry.sandbox.interface import Exit, Feature, Mount, SandboxSpec
from lorry.sandbox.limits import NoLimits
from lorry.sandbox.namespaces import Facts, NamespaceSandbox, causes
from lorry.sandbox.process import ProcessSandbox
from lorry.sandbox.spawn import LaunchError

UNSHARE = {"x86_64": 272, "aarch64": 97}.get(os.uname().machine)
EPERM = 1
FREE = Facts(
    root=False,
    apparmor_restricts=False,
    max_user_namespaces=1,
    clone_allowed=True,
    in_container=False,
    seccomp=False,
)
REFUSED = LaunchError(EPERM, "making namespaces", "Operation not permitted")


def test_where_unshare_is_forbidden_the_probe_says_so_and_auto_takes_the_process_tier() -> None:
    if UNSHARE is None:
        pytest.skip("system call number unknown here")
    out = run_forbidding(
        {UNSHARE: EPERM},
        "import json\n"
        "from lorry.sandbox import detect\n"
        "reports = [(r.tier, r.works, r.sentence) for r in detect.report()]\n"
        "print(json.dumps([reports, detect.choose('auto').name]))",
    )
    reports, chosen = json.loads(out)
    assert chosen == "process"
    assert [(tier, works) for tier, works, _ in reports] == [
        ("namespaces", False),
        ("bwrap", False),
        ("process", True),
    ]
    assert "seccomp" in reports[0][2]
    assert "making namespaces: Operation not permitted" in reports[0][2]
    assert "without isolation" in reports[2][2]


def test_auto_takes_namespaces_where_they_work() -> None:
    if problems := NamespaceSandbox(LIMITS).check():
        pytest.skip(problems[0])
    assert detect.choose(None, LIMITS).name == "namespaces"


def test_auto_takes_bwrap_where_only_that_may_make_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NamespaceSandbox, "check", lambda self: ("AppArmor forbids it",))
    monkeypatch.setattr(BwrapSandbox, "check", lambda self: ())
    assert detect.choose(None, LIMITS).name == "bwrap"


def test_bwrap_says_what_is_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        assert "ordinary users" in BwrapSandbox(LIMITS).check()[0]
    monkeypatch.setattr(bwrap, "sandbox_owner", lambda: None)
    monkeypatch.setattr(bwrap.shutil, "which", lambda name: None)
    assert "apt-get install bubblewrap" in BwrapSandbox(LIMITS).check()[0]
    assert "AppArmor" in bwrap.explain("setting up uid map: Permission denied")
    assert "too old" in bwrap.explain("Unknown option --disable-userns")


def test_bwrap_mounts_nothing_where_a_link_could_lead_it_astray(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/usr")
    frozen = Mount(source=str(tmp_path), target="/data")
    bwrap.refuse_traps(frozen, Mount(source="/usr", target="/data/plain"))
    bwrap.refuse_traps(frozen, Mount(source="/usr", target="/elsewhere"))
    with pytest.raises(InvalidError, match="symbolic link"):
        bwrap.refuse_traps(frozen, Mount(source="/usr", target="/data/link/below"))
    with pytest.raises(InvalidError, match="writable"):
        bwrap.refuse_traps(replace(frozen, read_only=False), Mount(source="/usr", target="/data/plain"))


def test_a_named_tier_is_never_replaced_by_a_weaker_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NamespaceSandbox, "check", lambda self: ("it is switched off: switch it on",))
    with pytest.raises(ResourceError, match="switch it on"):
        detect.choose("namespaces", LIMITS)


def test_an_unknown_tier_is_refused_with_the_list() -> None:
    with pytest.raises(InvalidError, match="auto, namespaces, bwrap, process"):
        detect.choose("docker", LIMITS)


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (replace(FREE, apparmor_restricts=True), "apparmor_restrict_unprivileged_userns=0"),
        (replace(FREE, max_user_namespaces=0), "user.max_user_namespaces"),
        (replace(FREE, clone_allowed=False), "unprivileged_userns_clone=1"),
        (replace(FREE, in_container=True, root=True), "--cap-add SYS_ADMIN"),
        (replace(FREE, seccomp=True), "seccomp=unconfined"),
        (FREE, "no sandbox could be made: making namespaces: Operation not permitted"),
    ],
)
def test_each_cause_of_a_failed_probe_names_what_to_do(facts: Facts, word: str) -> None:
    (sentence,) = causes(REFUSED, facts)
    assert word in sentence
    assert "Operation not permitted" in sentence


def test_root_is_not_told_about_what_binds_ordinary_users() -> None:
    facts = replace(FREE, root=True, apparmor_restricts=True, clone_allowed=False)
    (sentence,) = causes(REFUSED, facts)
    assert "AppArmor" not in sentence


def test_the_process_tier_says_why_it_cannot_mount_and_how_to_get_there() -> None:
    (sentence,) = ProcessSandbox(LIMITS).missing([Feature.MOUNTS])
    assert "absolute paths" in sentence
    assert "lorry doctor" in sentence


def test_without_control_groups_only_what_rlimits_give_is_promised() -> None:
    assert NamespaceSandbox(NoLimits()).missing(list(Feature)) != ()
    kernel = {Feature.MOUNTS, Feature.BLOCK_NETWORK, Feature.LAYERS}
    assert {Feature.MEMORY_LIMIT, Feature.PIDS_LIMIT, *kernel} == {
        feature for feature in Feature if not NamespaceSandbox(NoLimits()).missing([feature])
    }
    assert {Feature.MEMORY_LIMIT} == {
        feature for feature in Feature if not ProcessSandbox(NoLimits()).missing([feature])
    }


def test_a_spec_knows_what_it_needs(tmp_path: Path) -> None:
    spec = SandboxSpec(container_id="ct-1", argv=("x",), env=(), folder=str(tmp_path))
    assert spec.features() == ()
    wanted = replace(spec, mounts=(Mount(source="/usr", target="/x"),), block_network=True, cpu_limit=1.0)
    assert set(wanted.features()) == {Feature.MOUNTS, Feature.BLOCK_NETWORK, Feature.CPU_LIMIT}


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (Exit(code=3), "exited with code 3"),
        (Exit(code=137, signal=9), "ended by SIGKILL: it was killed by"),
        (Exit(code=137, signal=9, oom_killed=True, peak_memory=512), "memory limit (peak 512 MiB)"),
        (Exit(code=134, signal=6), "SIGABRT: native code gave up"),
        (Exit(code=128 + 40, signal=40), "ended by signal 40"),
    ],
)
def test_an_exit_describes_itself_with_its_likely_cause(end: Exit, words: str) -> None:
    assert words in end.describe()
