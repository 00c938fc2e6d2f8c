"""Two versions of Lorry meet at one server, or the server's own installation is deleted under it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import journal
import pytest
from installation import Installation
from server_home import PROGRAMS, ServerHome, kill_and_wait, wait_until
from test_faults import traces, volume_folder
from test_faults_server import alive, lorry_command, status

import lorry
from lorry.errors import VersionError
from lorry.sdk.channel import Channel

OLDER, OTHER_PROTOCOL = "0.0.9", 0
WAITS = "import journal\nwith journal.app.run():\n print(journal.wait_for.remote('go'))"


def ask_as_any_client() -> dict[str, object]:
    """As `status`, but by a client that starts or replaces servers."""
    channel = Channel()
    try:
        return dict(channel.ask("server_status", {}))
    finally:
        channel.close()


# An older server


def test_a_newer_client_replaces_an_idle_older_server(own_server: ServerHome, tmp_path: Path) -> None:
    Installation(tmp_path / "older", version=OLDER).lorry("server", "start")
    before = status()
    assert before["version"] == OLDER
    after = ask_as_any_client()
    assert after["version"] == lorry.__version__
    assert after["keeper"] != before["keeper"]
    assert not alive(int(str(before["keeper"])))
    assert not alive(int(str(before["pid"])))


def test_an_older_client_uses_a_newer_server_as_it_is(own_server: ServerHome, tmp_path: Path) -> None:
    before = ask_as_any_client()
    assert f"pid {before['keeper']}" in Installation(tmp_path / "older", version=OLDER).lorry("server", "start")
    assert status()["pid"] == before["pid"]


def test_a_newer_client_leaves_a_busy_older_server_alone_and_says_so(own_server: ServerHome, tmp_path: Path) -> None:
    older = Installation(tmp_path / "older", version=OLDER)
    client = subprocess.Popen([older.python, "-c", WAITS], cwd=PROGRAMS, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: list(own_server.state.glob("volumes/vo-*")), 30)
        wait_until(lambda: traces(own_server, "waiting"), 30)
        before = status()
        said = lorry_command("ps")
        assert said.returncode == 0, said.stderr
        assert "wait_for" in said.stdout
        (sentence,) = said.stderr.splitlines()
        for word in (OLDER, lorry.__version__, "journal", "lorry server restart"):
            assert word in sentence
        with journal.app.run():
            assert journal.mark.remote(1) == 1
        after = ask_as_any_client()
        assert (after["pid"], after["version"]) == (before["pid"], OLDER)
        (volume_folder(own_server) / "go").write_text("")
        assert client.communicate(timeout=30)[0] == "go\n"
        assert traces(own_server, "waiting").total() == 1
    finally:
        client.kill()
        client.communicate()
    wait_until(lambda: not status()["apps"])
    assert ask_as_any_client()["version"] == lorry.__version__, "it is idle now, and was not replaced"


def test_a_server_of_another_protocol_is_named_and_can_be_ended(own_server: ServerHome, tmp_path: Path) -> None:
    other = Installation(tmp_path / "older", version=OLDER, protocol=OTHER_PROTOCOL)
    other.lorry("server", "start")
    keeper = own_server.keeper_pid()
    assert keeper is not None
    with pytest.raises(VersionError, match="lorry server restart"):
        ask_as_any_client()
    for command in ("stop", "restart"):
        refused = lorry_command("server", command)
        assert refused.returncode == 1
        assert f"lorry server {command} --force" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert alive(keeper)
    restarted = lorry_command("server", "restart", "--force")
    assert restarted.returncode == 0, restarted.stderr
    assert not alive(keeper)
    assert status()["version"] == lorry.__version__
    other_said = subprocess.run(
        [other.python, "-m", "lorry.cli.main", "ps"], capture_output=True, text=True, timeout=60, check=False
    )
    assert other_said.returncode == 1
    assert "protocol" in other_said.stderr
    assert "Traceback" not in other_said.stderr


# A deleted installation


@pytest.fixture
def deleted(own_server: ServerHome, tmp_path: Path) -> ServerHome:
    """A server whose virtual environment is gone, Lorry's own code included. It has run a function before."""
    installation = Installation(tmp_path / "deleted")
    installation.lorry("server", "start")
    with journal.app.run():
        assert journal.mark.remote(1) == 1
    journal.app.deploy(name="lasting")
    installation.delete()
    return own_server


COMMANDS = ["ps", "app list", "app logs lasting", "container list", "volume list", "secret list", "df", "server status"]


def test_commands_speak_sentences_to_a_server_without_its_environment(deleted: ServerHome) -> None:
    worker = status()["pid"]
    said = {command: lorry_command(*command.split()) for command in [*COMMANDS, "prune --yes --all"]}
    for command, done in said.items():
        assert "Traceback" not in done.stdout + done.stderr, f"{command}: {done.stderr}"
        assert done.returncode == 0 or done.stderr.startswith("Error: "), f"{command}: {done.stderr}"
    failed = {command: done.stderr for command, done in said.items() if done.returncode}
    assert set(failed) <= {"prune --yes --all"}, failed
    assert "lorry server restart" in failed["prune --yes --all"]
    assert status()["pid"] == worker
    stopped = lorry_command("server", "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Stopped.\n"), stopped.stderr
    assert not alive(int(str(worker)))
    assert "Traceback" not in deleted.log


def test_a_run_on_a_server_without_its_environment_ends_with_a_sentence(deleted: ServerHome) -> None:
    program = PROGRAMS / "journal.py"
    done = lorry_command("run", f"{program}::mark", "--i", "7")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "lorry server restart" in done.stderr
    restarted = lorry_command("server", "restart")
    assert restarted.returncode == 0, restarted.stderr
    assert lorry_command("run", f"{program}::mark", "--i", "7").returncode == 0


def test_the_next_client_starts_its_own_server_when_the_worker_of_a_deleted_environment_dies(
    deleted: ServerHome,
) -> None:
    kill_and_wait(deleted.worker_pid())
    with journal.app.run():
        assert journal.mark.remote(2) == 2
    assert lorry.Function.from_name("lasting", "mark").remote(3) == 3
    assert "cannot start" in deleted.log


# A Python that is called by a roundabout path


def test_the_path_by_which_python_was_called_may_lead_through_its_parent_folder(own_server: ServerHome) -> None:
    python = f"{Path(sys.executable).parent}/../bin/{Path(sys.executable).name}"
    program = "import journal\nwith journal.app.run():\n print(journal.mark.remote(1))"
    done = subprocess.run([python, "-c", program], cwd=PROGRAMS, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n", done.stderr
