"""Every command that is not `run`, at least once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_terminal import LORRY, PROGRAMS, Terminal

from lorry.cli import server


def _app_id(lorry: Terminal, name: str) -> str:
    rows = json.loads(lorry("app", "list", "--all", "--json").stdout)
    return str(next(row["app_id"] for row in rows if row["name"] == name))


def _lives(pid: int) -> bool:
    """And is no zombie that nobody has reaped."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_version(lorry: Terminal) -> None:
    assert lorry("--version").stdout.startswith("lorry ")


def test_help_names_every_command(lorry: Terminal) -> None:
    text = lorry("--help").stdout
    names = ("run", "deploy", "app", "runs", "ps", "container", "volume", "secret", "server", "df", "prune", "why")
    for command in names:
        assert command in text


def test_wrong_usage_is_exit_code_2(lorry: Terminal) -> None:
    for words in (["nothing"], ["run"], ["run", "--bogus", "x"], ["app", "stop"]):
        assert "Usage:" in lorry(*words, code=2).stderr


def test_completion_offers_commands(lorry: Terminal) -> None:
    done = lorry("", _LORRY_COMPLETE="complete_bash", COMP_WORDS="lorry vol", COMP_CWORD="1")
    assert done.stdout.strip() == "volume"
    assert "complete" in lorry("--show-completion", code=None, SHELL="/bin/bash").stdout


def test_looking_commands_start_no_server(fresh: Terminal) -> None:
    lines = "app list,runs,runs list --json,ps,container list --json,df,volume list,secret list --json,prune --yes"
    for line in lines.split(","):
        fresh(*line.split())
    assert "does not run" in fresh("doctor").stdout
    assert json.loads(fresh("server", "status", "--json", code=1).stdout) == {"running": False}
    assert fresh("server", "stop").stdout == "No server is running.\n"
    assert not fresh.state.exists()


def test_server_start_status_restart_logs_stop(fresh: Terminal) -> None:
    assert fresh("server", "start").stdout.startswith("Started: pid ")
    assert fresh("server", "start").stdout.startswith("It runs already: pid ")
    status = json.loads(fresh("server", "status", "--json").stdout)
    assert status["running"]
    assert "isolation" in fresh("server", "status").stdout
    assert "runs, pid" in fresh("doctor").stdout
    fresh("server", "restart")
    again = json.loads(fresh("server", "status", "--json").stdout)
    assert again["keeper"] != status["keeper"]
    assert not _lives(status["keeper"])
    fresh("server", "stop")
    assert not _lives(again["keeper"])
    assert "stopping" in fresh("server", "logs", "--tail", "5").stdout
    fresh("server", "status", code=1)


def test_a_running_app_keeps_the_server_unless_forced(fresh: Terminal) -> None:
    with subprocess.Popen(
        [LORRY, "run", "-q", "waits.py::forever"], cwd=PROGRAMS, stdout=subprocess.PIPE, env=fresh.environ, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "it has started\n"
        assert "waits" in fresh("server", "stop", code=1).stderr
        fresh("server", "stop", "--force")
        running.terminate()


def test_deploy_list_stop(lorry: Terminal) -> None:
    done = lorry("deploy", "hello.py", "--name", "greetings")
    assert "Deployed greetings, version 1" in done.stdout
    assert 'lorry.Function.from_name("greetings", "square")' in done.stdout
    assert "greetings" in lorry("app", "list").stdout
    lorry("app", "stop", "greetings")
    assert "has stopped already" in lorry("app", "stop", "greetings").stdout
    assert "leave ::square out" in lorry("deploy", "hello.py::square", code=1).stderr


def test_logs_and_reasons_of_an_old_run(lorry: Terminal) -> None:
    lorry("run", "-n", "logged", "hello.py")
    assert lorry("app", "logs", "logged").stdout == "squaring 3\n"
    assert lorry("app", "logs", "logged").stderr == "careful with 3\n"
    assert lorry("app", "logs", "logged", "--call", "fc-none").stdout == ""
    assert lorry("app", "logs", _app_id(lorry, "logged"), "--tail", "1", "-t").stdout[:2] in ("20", "")
    rows = json.loads(lorry("container", "list", "--all", "--app", "logged", "--json").stdout)
    container = rows[0]["container_id"]
    assert lorry("container", "logs", container).stdout == "squaring 3\n"
    assert container in lorry("container", "list", "--all").stdout
    for subject in (container, "logged"):
        kinds = [row["kind"] for row in json.loads(lorry("why", subject, "--json").stdout)["decisions"]]
        assert kinds[0] == "start"
        assert kinds[-1] == "end"
        assert "start" in lorry("why", subject).stdout


@pytest.mark.parametrize(
    "words",
    [
        ["app", "logs", "nobody"],
        ["app", "stop", "nobody"],
        ["container", "logs", "ct-1"],
        ["container", "stop", "ct-1"],
        ["why", "nobody"],
        ["volume", "ls", "nowhere"],
        ["secret", "delete", "nothing", "--yes"],
        ["deploy", "nothing.py"],
    ],
)
def test_what_does_not_exist_is_one_line(lorry: Terminal, words: list[str]) -> None:
    done = lorry(*words, code=1)
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_container_stop(lorry: Terminal) -> None:
    app_id = lorry("run", "-d", "-q", "waits.py::forever").stdout.strip()
    with subprocess.Popen(
        [LORRY, "app", "logs", app_id, "-f"], stdout=subprocess.PIPE, env=lorry.environ, text=True
    ) as logs:
        assert logs.stdout is not None
        logs.stdout.readline()
        (row,) = json.loads(lorry("container", "list", "--app", app_id, "--json").stdout)
        assert "queued again" in lorry("container", "stop", row["container_id"]).stdout
        assert logs.stdout.readline() == "it has started\n"  # in another container
        lorry("app", "stop", app_id)


def test_volume_there_and_back(lorry: Terminal, tmp_path: Path) -> None:
    source = tmp_path / "data"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_text("alpha")
    (source / "sub" / "b.txt").write_text("beta")
    lorry("volume", "create", "things")
    assert "exists already" in lorry("volume", "create", "things", code=1).stderr
    lorry("volume", "put", "things", str(source))
    lorry("volume", "put", "things", str(source / "a.txt"), "/renamed.txt")
    assert "--force" in lorry("volume", "put", "things", str(source / "a.txt"), "/renamed.txt", code=1).stderr
    lorry("volume", "put", "--force", "things", str(source / "a.txt"), "/renamed.txt")
    paths = {row["path"].strip("/") for row in json.loads(lorry("volume", "ls", "things", "-r", "--json").stdout)}
    assert paths == {"data", "data/a.txt", "data/sub", "data/sub/b.txt", "renamed.txt"}
    assert "renamed.txt" in lorry("volume", "ls", "things").stdout
    assert "things" in lorry("volume", "list").stdout
    lorry("volume", "get", "things", "data", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "b.txt").read_text() == "beta"
    lorry("volume", "get", "things", "data/a.txt", str(tmp_path))
    assert (tmp_path / "a.txt").read_text() == "alpha"
    assert "--force" in lorry("volume", "get", "things", "data/a.txt", str(tmp_path), code=1).stderr
    assert lorry("volume", "get", "things", "data/sub/b.txt", "-").stdout == "beta"
    lorry("volume", "rm", "things", "data", "-r")
    assert "--yes" in lorry("volume", "delete", "things", code=1).stderr
    lorry("volume", "delete", "things", "--yes")
    assert "things" not in lorry("volume", "list").stdout


def test_secrets_show_keys_and_never_values(lorry: Terminal, tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("TOKEN='very secret'\n# comment\n")
    done = lorry("secret", "create", "keys", "USER=ada", "--from-dotenv", str(dotenv))
    assert "TOKEN, USER" in done.stdout
    assert "--force" in lorry("secret", "create", "keys", "A=1", code=1).stderr
    (row,) = json.loads(lorry("secret", "list", "--json").stdout)
    assert row["keys"] == ["TOKEN", "USER"]
    assert "very secret" not in json.dumps(row)
    lorry("secret", "create", "keys", "A=1", "--force")
    assert "A" in lorry("secret", "list").stdout
    assert "no '='" in lorry("secret", "create", "other", "word", code=1).stderr
    lorry("secret", "delete", "keys", "--yes")
    assert json.loads(lorry("secret", "list", "--json").stdout) == []


def test_disk_use_and_clean_up(lorry: Terminal) -> None:
    lorry("server", "start")
    found = json.loads(lorry("df", "--json").stdout)
    assert found["kinds"]["database"] > 0
    assert "total" in lorry("df").stdout
    assert "--yes" in lorry("prune", code=1).stderr
    assert "freed" in json.loads(lorry("prune", "--yes", "--json").stdout)


def test_config_tells_where_each_value_comes_from(lorry: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("log_limit = 64\n")
    rows = {row["setting"]: row for row in json.loads(lorry("config", "--json", LORRY_CONFIG=str(file)).stdout)}
    assert (rows["log_limit"]["value"], rows["log_limit"]["from"]) == (64, str(file))
    assert rows["state_dir"]["from"] == "LORRY_STATE_DIR"
    assert rows["sandbox"]["from"] == "default"
    file.write_text("nonsense = 1\n")
    assert "unknown setting" in lorry("config", code=1, LORRY_CONFIG=str(file)).stderr


def test_doctor_fails_where_nothing_can_run(lorry: Terminal, tmp_path: Path) -> None:
    assert "fail" not in {row["verdict"] for row in json.loads(lorry("doctor", "--json").stdout)}
    file = tmp_path / "file"
    file.write_text("")
    done = lorry("doctor", code=1, LORRY_STATE_DIR=str(file / "state"), LORRY_RUNTIME_DIR=str(tmp_path / "r"))
    assert "fail" in done.stdout
    assert "LORRY_STATE_DIR" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["volume", "--help"], ["config"], ["nonsense"]])
def test_no_command_pays_for_large_libraries(lorry: Terminal, words: list[str]) -> None:
    code = (
        "import sys; from lorry.cli.main import run; run(sys.argv[1:]); "
        "print({'pydantic', 'rich', 'asyncio', 'uvloop', 'apsw'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=lorry.environ, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "set()"


def test_messages_name_only_commands_that_exist() -> None:
    from lorry.cli.main import _COMMANDS

    source = Path(__file__).parents[2] / "src" / "lorry"
    named = {
        (word, path.name)
        for path in source.rglob("*.py")
        for word in re.findall(r"`lorry ([a-z]+)", path.read_text())
        if "_vendor" not in path.parts
    }
    assert len(named) > 10
    assert {entry for entry in named if entry[0] not in _COMMANDS} == set()


def test_what_is_missing_is_named_with_the_command_that_makes_it(lorry: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("")
    assert "`lorry volume create corpus` makes it" in lorry("volume", "put", "corpus", str(file), code=1).stderr
    program = tmp_path / "secretive.py"
    program.write_text(
        "import lorry\napp = lorry.App()\n"
        "@app.function(secrets=[lorry.Secret.from_name('hub', required_keys=['HF_TOKEN'])])\ndef f(): ...\n"
    )
    assert "`lorry secret create hub KEY=VALUE` makes it" in lorry("run", str(program), code=1).stderr
    lorry("secret", "create", "hub", "OTHER=1")
    assert "HF_TOKEN" in (said := lorry("run", str(program), code=1).stderr)
    assert "`lorry secret create --force hub KEY=VALUE`" in said
    lorry("secret", "delete", "hub", "--yes")


def test_whoever_stops_the_server_waits_as_long_as_runs_may_take_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[tuple[int, float]] = []
    monkeypatch.setattr(server.asking, "running", dict)
    monkeypatch.setattr(server.asking, "act", lambda *_, **__: {"worker": 1, "keeper": 2, "grace": 600.0})
    monkeypatch.setattr(server, "gone", lambda pid, seconds: waited.append((pid, seconds)) or True)
    server.stop(force=True)
    assert waited == [(1, 600.0 + server.STOP_PATIENCE), (2, server.STOP_PATIENCE)]
