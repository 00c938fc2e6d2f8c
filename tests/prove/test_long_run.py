"""A function that runs for minutes while the worker is killed again and again: one execution, one result.

`make prove` runs it.
"""

from __future__ import annotations

import random
import time

import journal
import pytest
from server_home import ServerHome, kill_and_wait, wait_until
from test_faults import traces, volume_folder
from test_faults_server import Caller, status

SECONDS = 150
KILLS = 6


@pytest.mark.prove
def test_a_function_runs_for_minutes_while_the_worker_is_killed(
    own_server: ServerHome, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses = random.Random(0)
    with journal.app.run():
        spawned = journal.wait_for.spawn("go")
        waiting = Caller(lambda: journal.wait_for.remote("go"), patience=2 * SECONDS)
        wait_until(lambda: traces(own_server, "waiting").total() == 2)
        began = time.monotonic()
        for _ in range(KILLS):
            time.sleep(SECONDS / KILLS * pauses.uniform(0.8, 1.2))  # what is proved is the length of the run
            worker = own_server.worker_pid()
            kill_and_wait(worker)
            wait_until(lambda worker=worker: status()["pid"] != worker)
        ran = time.monotonic() - began
        (volume_folder(own_server) / "go").write_text("")
        assert spawned.get(timeout=30) == "go"
        assert waiting.answer() == "go"
    assert traces(own_server, "waiting").total() == 2
    with capsys.disabled():
        print(f"\n{KILLS} kills of the worker in {ran:.0f} s under two running inputs: each ran once")
