"""Machines that give less than Linux with namespaces: what `doctor`, the first run and the errors say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_terminal import LORRY, PROGRAMS, Result, Terminal

UNSHARE = {"x86_64": 272, "aarch64": 97}.get(os.uname().machine)
SANDBOX_TESTS = Path(__file__).parents[1] / "sandbox"
EPERM = 1


def where_unshare_is_forbidden(terminal: Terminal, *words: str) -> Result:
    """As in Docker with its default profile: the command, and the server that it starts."""
    code = (
        f"import os, sys; sys.path.insert(0, {str(SANDBOX_TESTS)!r}); import forbid; "
        f"forbid.install({{{UNSHARE}: {EPERM}}}); os.execv({LORRY!r}, ['lorry', *sys.argv[1:]])"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=terminal.environ,
        cwd=PROGRAMS,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(UNSHARE is None, reason="system call number unknown here")
def test_where_namespaces_are_forbidden_doctor_and_the_first_run_say_so(fresh: Terminal) -> None:
    done = where_unshare_is_forbidden(fresh, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["tier namespaces"]["verdict"] == "note"
    assert "seccomp=unconfined" in checks["tier namespaces"]["text"]
    assert checks["tier process (in use)"]["verdict"] == "ok"

    first = where_unshare_is_forbidden(fresh, "run", "hello.py")
    assert (first.returncode, "remote says 9" in first.stdout) == (0, True), first.stderr
    assert "not isolated" in first.stderr
    assert "`lorry doctor` says what is in the way" in first.stderr
    assert "not isolated" not in where_unshare_is_forbidden(fresh, "run", "hello.py").stderr
    assert "process" in fresh("server", "status").stdout


PROGRAM = """
import lorry
app = lorry.App("open")
data = lorry.Volume.from_name("data", create_if_missing=True)
image = lorry.Image.debian_slim()
@app.function({parameters})
def f():
    return 42
"""


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("volumes={'/data': data}", "cannot mount Volumes or files at absolute paths"),
        ("image=image.add_local_file(__file__, '/etc/program.py')", "cannot mount Volumes or files at absolute paths"),
        ("block_network=True", "cannot block the network"),
    ],
)
def test_the_process_tier_refuses_what_it_cannot_give(
    open_tier: Terminal, tmp_path: Path, parameters: str, words: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(parameters=parameters))
    refused = open_tier("run", str(program), code=1).stderr.splitlines()
    (error,) = [line for line in refused if line.startswith("Error: ")]
    assert words in error
    assert "run the server on Linux with namespaces: `lorry doctor`" in error
    program.write_text(PROGRAM.format(parameters=""))
    assert open_tier("run", "-q", str(program)).stdout == "42\n"


@pytest.fixture
def open_tier(fresh: Terminal) -> Terminal:
    fresh.environ["LORRY_SANDBOX"] = "process"
    return fresh


ELSEWHERE = "import sys; sys.platform = 'darwin'; "


@pytest.mark.parametrize("words", [["run", "hello.py"], ["app", "list"], ["doctor"]])
def test_on_another_system_every_command_says_that_linux_is_needed(fresh: Terminal, words: list[str]) -> None:
    code = ELSEWHERE + "from lorry.cli.main import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=fresh.environ,
        cwd=PROGRAMS,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Lorry runs on Linux in this version: on macOS in a Linux virtual machine" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_on_another_system_a_program_says_that_linux_is_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE + "import lorry; lorry.App()"], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines()[-1].startswith("lorry.errors.ResourceError: Lorry runs on Linux in this version")


def test_the_readme_says_what_works_where() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    rows = {line.split("|")[1].strip().split()[0]: line for line in readme.splitlines() if line.startswith("| ")}
    assert "process" in rows["macOS"]
    assert "WSL2" in rows["Windows"]
    for refused in ("Volumes", "added files", "`block_network`"):
        assert refused in readme


def test_everything_lies_in_one_folder(tmp_path: Path) -> None:
    """Which is why deleting it uninstalls; uv's own cache is uv's."""
    home = Terminal(tmp_path)
    for name in ("LORRY_STATE_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        home.environ.pop(name, None)
    home.environ |= {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    try:
        assert home("run", "-q", "hello.py").returncode == 0
        home("secret", "create", "key", "A=1")
        home("volume", "create", "data")
        found = {path.relative_to(tmp_path).parts[:4] for path in (tmp_path / "home").rglob("*") if path.is_file()}
        assert {parts for parts in found if parts[1:3] != (".cache", "uv")} == {("home", ".local", "state", "lorry")}
        assert str(tmp_path / "home" / ".local" / "state" / "lorry") in home("df").stdout
    finally:
        home("server", "stop", "--force")


ONE_ID = ["unshare", "--user", "--map-root-user"]


@pytest.mark.skipif(subprocess.run([*ONE_ID, "true"], capture_output=True).returncode != 0, reason="no user namespaces")
def test_the_root_of_a_user_namespace_with_one_id_is_an_ordinary_user(fresh: Terminal) -> None:
    """As in a rootless container without subordinate ids: there is no unprivileged id to give sandboxes to."""
    done = subprocess.run(
        [*ONE_ID, LORRY, "run", "hello.py"], env=fresh.environ, cwd=PROGRAMS, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "remote says 9" in done.stdout) == (0, True), done.stderr
    subprocess.run([*ONE_ID, LORRY, "server", "stop"], env=fresh.environ, check=True, capture_output=True, timeout=60)
