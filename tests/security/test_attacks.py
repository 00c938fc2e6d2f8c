"""Every attack in every tier, as root and as an ordinary user: each cell of the table on docs/security.md."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from lorry.cli import doctor_security
from lorry.sandbox import detect
from lorry.sandbox.landlock import scopes_signals
from lorry.sandbox.limits import find_limits
from lorry.security import measure
from lorry.security.attacks import ATTACKS, COLUMNS, HERE, PROGRAMS, Attack, Verdict

USER = 65532
PYTHON = "/usr/bin/python3"
OURS = ("lorry.sandbox", "lorry.security", "lorry.errors", "lorry.ids")
PROGRAM = """
import json, sys
from lorry.sandbox import detect
from lorry.sandbox.limits import find_limits
from lorry.security import measure
tier = sys.argv[1]
problems = [r.sentence for r in detect.report() if r.tier == tier and not r.works]
verdicts = {} if problems else measure.measure(tier)
print(json.dumps([problems, verdicts, sorted(find_limits().features)]))
"""


@pytest.fixture(scope="session")
def columns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the workers of one run share: what one has measured, the others read."""
    shared = tmp_path_factory.getbasetemp()
    yield shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared


def measured(title: str, columns: Path) -> tuple[dict[str, Verdict], frozenset[str]]:
    """(attack → verdict, what control groups limit) for one column; skips what this machine cannot run."""
    with (columns / title).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        if not text:
            try:
                verdicts, groups = attacked(title)
                text = json.dumps(["", verdicts, sorted(groups)])
            except pytest.skip.Exception as reason:
                text = json.dumps([str(reason), {}, []])
            file.write(text)
    reason, verdicts, found = json.loads(text)
    if reason:
        pytest.skip(reason)
    return {attack: Verdict(verdict) for attack, verdict in verdicts.items()}, frozenset(found)


def attacked(title: str) -> tuple[dict[str, Verdict], frozenset[str]]:
    tier, _, user = title.partition(" ")
    if user == "(user)" and os.geteuid() == 0:
        return as_user(tier)
    if user == "(root)" and os.geteuid() != 0:
        pytest.skip("this run is not root")
    problems = [report.sentence for report in detect.report() if report.tier == tier and not report.works]
    if problems:
        pytest.skip(problems[0])
    return measure.measure(tier), find_limits().features


def as_user(tier: str) -> tuple[dict[str, Verdict], frozenset[str]]:
    version = subprocess.run([PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if version.stdout.strip() != b"True":
        pytest.skip(f"{PYTHON} is older than 3.11, and this interpreter may lie where only root can read")
    with tempfile.TemporaryDirectory(prefix="lorry-user-") as name:
        for module in OURS:
            copy_module(module, Path(name))
        os.chown(name, USER, USER)
        done = subprocess.run(
            [PYTHON, "-c", PROGRAM, tier],
            cwd=name,
            env={"PYTHONPATH": name, "HOME": name, "PATH": "/usr/bin:/bin"},
            user=USER,
            group=USER,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    problems, verdicts, features = json.loads(done.stdout)
    if problems:
        pytest.skip(problems[0])
    return {attack: Verdict(verdict) for attack, verdict in verdicts.items()}, frozenset(features)


def copy_module(name: str, path: Path) -> None:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    where = path / name.replace(".", "/")
    if spec.submodule_search_locations:
        shutil.copytree(spec.submodule_search_locations[0], where, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(spec.origin, f"{where}.py")


@pytest.mark.parametrize("title", COLUMNS)  # varies fastest: each worker begins with a column of its own
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_each_tier_stops_what_it_promises_to_and_each_attack_works_without_one(
    title: str, attack: Attack, columns: Path
) -> None:
    tier, _, user = title.partition(" ")
    verdicts, groups = measured(title, columns)
    if verdicts[attack.name] is Verdict.UNKNOWN:
        assert tier == HERE, "the tier could not run it"
        pytest.skip("this machine forbids it to everybody")
    root = user == "(root)" or (not user and os.geteuid() == 0)
    assert verdicts[attack.name] == attack.expected(tier, groups=groups, root=root, scopes=scopes_signals())


def test_every_program_belongs_to_an_attack_and_needs_only_the_standard_library() -> None:
    assert {path.stem for path in PROGRAMS.glob("*.py")} - {"__init__"} == {attack.program for attack in ATTACKS}
    for path in PROGRAMS.glob("[a-z]*.py"):
        assert "lorry" not in path.read_text().partition('"""')[2].partition('"""')[2]


def test_what_no_tier_stops_says_why() -> None:
    for attack in ATTACKS:
        if attack.open_in or attack.watched or attack.limited_by:
            assert attack.note, attack.name


def test_the_table_marks_what_was_not_measured_and_what_is_worse_than_promised() -> None:
    bad = {attack.name: Verdict.NOT_STOPPED for attack in ATTACKS}
    title = next(title for title in COLUMNS if title.endswith("(root)" if os.geteuid() == 0 else "(user)"))
    for attack, cells in measure.table({"namespaces": bad}):
        assert [cell.measured for cell in cells.values()] == [other == title for other in COLUMNS]
        assert cells[title].wrong == (not attack.open_in)


def test_doctor_prints_the_table_and_fails_when_a_wall_has_a_hole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(tier: str) -> dict[str, Verdict]:
        return {attack.name: attack.expected(tier, groups=measure.ALL_GROUPS, root=True) for attack in ATTACKS}

    monkeypatch.setattr(measure, "measure", run)
    assert doctor_security.security(as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["attack"] for row in rows] == [attack.name for attack in ATTACKS]
    assert all(row["tiers"][HERE]["measured"] for row in rows)
    monkeypatch.setattr(measure, "measure", lambda tier: run(tier) | {"nested namespaces": Verdict.NOT_STOPPED})
    if any(report.works and report.tier != HERE for report in detect.report()):
        assert not doctor_security.security(as_json=False)
        assert "WORSE THAN PROMISED: nested namespaces" in capsys.readouterr().out


def test_the_page_on_security_has_this_table() -> None:
    page = (Path(__file__).parents[2] / "docs/security.md").read_text()
    rows = [
        f"| {attack.name} | " + " | ".join(c.verdict for c in cells.values()) + " |"
        for attack, cells in measure.table({})
    ]
    assert [line for line in page.splitlines() if line in rows] == rows
