"""An app is deployed again while runs of it train: each ends with the code that it began with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from run_orders import Orders
from server_asking import ask
from server_home import ServerHome, kill_and_wait, wait_until

import lorry

LORRY = Path(sys.executable).parent / "lorry"
PROGRAM = """
import time

import lorry

app = lorry.App("redeployed")


@app.function(timeout=60, resumable=lorry.Resumable(grace=10, keep_every=None))
def train() -> list[int]:
    state = {"versions": []}
    run = lorry.run()
    run.track(state=state)
    run.restore()
    state["versions"].append(VERSION)
    while not (run.folder / "enough").exists():
        time.sleep(0.01)
        run.step()
    return state["versions"]
"""


def deploy(folder: Path, version: int) -> str:
    """What the command says."""
    (folder / "redeployed.py").write_text(PROGRAM.replace("VERSION", str(version)))
    done = subprocess.run([LORRY, "deploy", folder / "redeployed.py"], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Training(Orders):
    def __init__(self, call: lorry.FunctionCall[list[int]]) -> None:
        super().__init__(call.object_id)
        self.call = call

    def next_attempt(self) -> None:
        """It saves, and goes on in another container."""
        before = self.wait_for(phase="training")
        ask("container_stop", container_id=before["attempt_rows"][-1]["container_id"])
        self.wait_for(attempts=before["attempts"] + 1, phase="training")

    def end(self) -> list[int]:
        (self.folder / "enough").touch()
        return self.call.get(timeout=30)


def alive() -> list[str]:
    return [app["app_id"] for app in ask("app_list")["apps"]]


def test_runs_go_on_with_the_code_that_they_began_with(own_server: ServerHome, tmp_path: Path) -> None:
    assert "version 1" in deploy(tmp_path, 1)
    train: lorry.Function[[], list[int]] = lorry.Function.from_name("redeployed", "train")
    running, cancelled = Training(train.spawn()), Training(train.spawn())
    (first,) = alive()
    cancelled.wait_for(phase="training")
    assert "version 2" in deploy(tmp_path, 2)
    running.next_attempt()
    kill_and_wait(own_server.worker_pid())
    running.next_attempt()
    ask("run_cancel", run=cancelled.run_id)
    new: lorry.Function[[], list[int]] = lorry.Function.from_name("redeployed", "train")
    assert Training(new.spawn()).end() == [2]
    assert first in alive(), "it stays as long as a run of it does"
    assert ask("app_lookup", app="redeployed")["version"] == 2
    assert running.end() == [1, 1, 1]
    wait_until(lambda: first not in alive())
    resumed = ask("run_resume", run=cancelled.run_id)
    cancelled.call = lorry.FunctionCall.from_id(resumed["call"])
    assert cancelled.end() == [1, 1]
