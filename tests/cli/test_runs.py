"""`lorry runs` and what `lorry run` shows of runs, on a server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from cli_terminal import Terminal, screen
from server_home import wait_until

from lorry.sdk.app_run import PRESSED_TWICE

LIMIT = 60.0


def _runs(lorry: Terminal, app: str) -> list[Any]:
    rows: list[Any] = json.loads(lorry("runs", "list", "--all", "--app", app, "--json").stdout)
    return rows


def _run(lorry: Terminal, app: str) -> Any:
    (row,) = _runs(lorry, app)
    return row


def _detached(lorry: Terminal, app: str, *words: str) -> str:
    """The id of a run that is under way and has saved."""
    lorry("run", "-d", "-n", app, "trains.py", *words)
    wait_until(lambda: any(row["head_step"] for row in _runs(lorry, app)), LIMIT)
    return str(_run(lorry, app)["run_id"])


@pytest.fixture(autouse=True)
def _nothing_stays(lorry: Terminal) -> Iterator[None]:
    """Apps that were detached go on, and who was not waited for still saves: the next test finds neither."""
    yield
    for app in json.loads(lorry("app", "list", "--json").stdout):
        lorry("app", "stop", app["app_id"])
    while left := json.loads(lorry("container", "list", "--json").stdout):
        for container in left:
            lorry("container", "stop", container["container_id"])


@pytest.fixture(scope="module")
def counted(_session_terminal: Terminal) -> Any:
    """A run that is done."""
    done = _session_terminal("run", "-n", "counted", "trains.py", "--steps", "30")
    assert done.stdout.splitlines()[-1] == "435"
    assert "lorry runs resume" not in done.stderr
    return _run(_session_terminal, "counted")


def test_a_run_that_is_done_is_listed_and_shown(lorry: Terminal, counted: Any) -> None:
    run_id = counted["run_id"]
    assert (counted["state"], counted["head_step"]) == ("done", 30)
    assert run_id not in lorry("runs").stdout
    assert run_id in lorry("runs", "list", "--all").stdout
    page = lorry("runs", "show", run_id[:14]).stdout
    assert page.startswith(f"train  {run_id}  done\n")
    assert "loss 10 → 0.3333" in page
    assert re.search(r"^1 +.* 0-30 +finished$", page, re.M)
    assert re.search(r"^step 30 .* manifest only ", page, re.M)
    assert lorry("runs", "show", counted["call"]).stdout.splitlines()[0] == page.splitlines()[0]
    shown = json.loads(lorry("runs", "show", run_id, "--json").stdout)
    assert [row["step"] for row in shown["metrics"]] == list(range(1, 31))
    lines = lorry("runs", "show", run_id, "-f").stdout
    assert lines.startswith(f"train  {run_id}  done\n")


def test_the_output_of_a_run(lorry: Terminal, counted: Any) -> None:
    assert lorry("runs", "logs", counted["run_id"]).stdout == "from the start\nstep 10\nstep 20\nstep 30\n"
    assert lorry("runs", "logs", counted["run_id"], "-f", "--tail", "1").stdout == "step 30\n"


def test_a_damaged_checkpoint_is_found(lorry: Terminal) -> None:
    lorry("run", "-n", "damaged", "trains.py", "--steps", "10")
    run = _run(lorry, "damaged")
    assert re.search(r"^step 10 +manifest only +\w{12}  whole$", lorry("runs", "verify", run["run_id"]).stdout, re.M)
    manifest = max(Path(run["folder"], "m").iterdir(), key=lambda path: path.stat().st_mtime)
    content = bytearray(manifest.read_bytes())
    content[20] ^= 1
    manifest.chmod(0o600)
    manifest.write_bytes(content)
    assert f"damaged: m/{manifest.name}\n" in lorry("runs", "verify", run["run_id"], code=1).stdout
    rows = json.loads(lorry("runs", "verify", run["run_id"], "--json", code=1).stdout)
    assert rows[0]["damaged"]


def test_a_wrong_id_is_told_with_the_runs_that_there_are(lorry: Terminal, counted: Any) -> None:
    for command in ("show", "logs", "resume", "cancel", "verify"):
        told = lorry("runs", command, "ru-ffff", code=1).stderr
        assert told.startswith("Error: no run 'ru-ffff'; the newest are\n  ru-")
        assert "Traceback" not in told
    assert "ru-" in lorry("runs", "show", "ru-", code=None).stdout + lorry("runs", "show", "ru-", code=None).stderr


def test_a_run_is_stopped_when_it_has_saved_and_goes_on_from_there(lorry: Terminal) -> None:
    run_id = _detached(lorry, "stopped", "--steps", "150", "--pause", "0.02")
    said = lorry("runs", "cancel", run_id)
    found = re.fullmatch(rf"{run_id} stopped at step (\d+); go on with: lorry runs resume {run_id}\n", said.stdout)
    assert found
    assert _run(lorry, "stopped")["head_step"] == int(found[1])
    assert said.stdout == lorry("runs", "cancel", run_id).stdout
    assert "go on with" in lorry("runs", "show", run_id).stdout

    again = lorry("runs", "resume", run_id)
    assert again.stdout.startswith("restored\n")
    assert again.stdout.endswith("step 150\n")
    assert f"train: run {run_id} goes on, attempt 2\n" in again.stderr
    assert "interrupted" not in again.stderr
    assert f"{run_id} is done: step 150" in again.stderr
    assert "is done already" in lorry("runs", "cancel", run_id).stdout
    assert "only one that has failed or was cancelled" in lorry("runs", "resume", run_id, code=1).stderr


def test_a_run_that_fails_says_why_and_how_to_go_on(lorry: Terminal) -> None:
    done = lorry("run", "-n", "failing", "trains.py", "--breaks-at", "12", code=1)
    run = _run(lorry, "failing")
    assert "ValueError: the batch is bad" in done.stderr
    assert done.stderr.count(f"lorry runs resume {run['run_id']}") == 1
    told = f"train: run {run['run_id']} was interrupted and goes on: ValueError: the batch is bad\n"
    assert 1 <= done.stderr.count(told) <= 3, "there are seconds between attempts"
    assert run["state"] == "failed"
    page = lorry("runs", "show", run["run_id"]).stdout
    attempts = re.findall(r"^\d .* error +ValueError: the batch is bad$", page, re.M)
    assert len(attempts) == 4  # the first saved; then three without progress
    assert page.splitlines()[-3] == "ValueError: the batch is bad"
    again = lorry("runs", "resume", run["run_id"], code=1)
    assert "ValueError: the batch is bad" in again.stderr
    assert again.stderr.rstrip().endswith(f"lorry runs resume {run['run_id']}")


def test_resume_without_staying(lorry: Terminal) -> None:
    run_id = _detached(lorry, "later", "--steps", "120", "--pause", "0.02")
    lorry("runs", "cancel", run_id)
    done = lorry("runs", "resume", run_id, "--detach")
    assert done.stdout.startswith("ap-")
    assert f"lorry runs show {run_id} -f" in done.stderr
    followed = lorry("runs", "show", run_id, "-f").stdout.splitlines()
    assert followed[0] == f"train  {run_id}  {_first_word(followed[0])}"
    assert followed[-1].startswith("train: step 120")
    assert "step 120" in lorry("runs", "logs", run_id, "-f").stdout


def _first_word(line: str) -> str:
    return line.rpartition(" ")[2]


def test_following_the_log_ends_with_the_run_also_where_the_app_goes_on(lorry: Terminal) -> None:
    run_id = _detached(lorry, "followed", "--steps", "150", "--pause", "0.02")
    assert lorry("runs", "logs", run_id, "-f").stdout.endswith("step 150\n")


# On a terminal


def test_ctrl_c_waits_until_the_run_has_saved_and_says_how_to_go_on(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "-n", "attached", "trains.py", "--steps", "3000", "--pause", "0.02", columns=100)
    terminal.expect(r"train: run ru-[0-9a-f]+ begins")
    terminal.expect(r"train  step \d+/3,000 ▕[^▏]*▏ \d+ %  loss \S+  [\d.]+ steps/s")
    terminal.expect(r"step \d+0\r\n")
    terminal.sendintr()
    terminal.expect(r"its run saves first, for up to 20 s \(Ctrl-C again: do not wait\)")
    terminal.expect(r"(ru-[0-9a-f]+) stopped at step (\d+); go on with: lorry runs resume ru-")
    run_id, step = terminal.match.groups()
    terminal.expect(r"Stopped after .*\r\n")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    run = _run(lorry, "attached")
    assert (run["run_id"], run["state"], run["head_step"]) == (run_id, "cancelled", int(step))
    assert int(step) >= 10


def test_a_later_ctrl_c_does_not_wait(lorry: Terminal) -> None:
    terminal = lorry.typed("run", "-n", "hasty", "trains.py", "--steps", "9", "--pause", "15", columns=100)
    terminal.expect(r"train: run ru-[0-9a-f]+ begins")
    terminal.sendintr()
    terminal.expect("Ctrl-C again: do not wait")
    time.sleep(PRESSED_TWICE)
    began = time.monotonic()
    terminal.sendintr()
    terminal.expect(r"lorry runs resume ru-[0-9a-f]+\r\nStopped after .*\r\n")
    terminal.expect(pexpect.EOF)
    assert time.monotonic() - began < 10  # its step takes 15 s
    terminal.close()
    assert terminal.exitstatus == 130


@pytest.mark.parametrize("columns", [80, 120])
def test_the_page_redraws_itself_and_ctrl_c_leaves_the_run_alone(lorry: Terminal, columns: int) -> None:
    run_id = _detached(lorry, f"watched-{columns}", "--steps", "3000", "--pause", "0.02")
    terminal = lorry.typed("runs", "show", run_id, "-f", columns=columns)
    seen = ""
    for _ in range(2):
        terminal.expect(r"step \d+/3,000")
        seen += terminal.before + terminal.after
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    seen += terminal.before
    terminal.close()
    assert terminal.exitstatus == 130
    shown = screen(seen)
    assert sum(line.startswith(f"train  {run_id}") for line in shown) == 1
    assert shown[-2].endswith(f"The run goes on; stop it with: lorry runs cancel {run_id}")
    assert max(map(len, shown[:-2])) < columns
    assert _run(lorry, f"watched-{columns}")["state"] == "running"
    lorry("runs", "cancel", run_id)
