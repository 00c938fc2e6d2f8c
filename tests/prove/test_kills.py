"""The kill tests fifty times: each input appends its id to a file; delivered once each, executions counted.

`make prove` runs it; the dated result belongs in docs/proofs.md.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path

import journal
import pytest
from server_home import ServerHome, processes_of
from test_faults import home_worker_of, traces

INPUTS = 2_000
ROUNDS = 50


@pytest.mark.prove
@pytest.mark.parametrize("victim", ["worker", "keeper", "container"])
def test_fifty_kills(own_server: ServerHome, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    random_place = random.Random(victim)
    executions = 0
    with journal.app.run():
        for round_ in range(ROUNDS):
            name = f"round{round_}"
            place = random_place.randrange(INPUTS)
            delivered = []
            for i, value in enumerate(journal.mark.map(range(INPUTS), kwargs={"name": name})):
                delivered.append(value)
                if i == place:
                    kill(own_server, victim)
            assert delivered == list(range(INPUTS))
            ran: Counter[str] = traces(own_server, name)
            assert len(ran) == INPUTS
            executions += sum(ran.values())
    ratio = executions / (INPUTS * ROUNDS)
    with capsys.disabled():
        print(f"\n{victim}: {ROUNDS} kills, {INPUTS * ROUNDS:,} inputs, executions ÷ inputs = {ratio:.4f}")
    assert ratio <= 1.2


def kill(home: ServerHome, victim: str) -> None:
    if victim == "worker":
        os.kill(home_worker_of(home), signal.SIGKILL)
    elif victim == "keeper":
        keeper = home.keeper_pid()
        assert keeper is not None
        os.kill(keeper, signal.SIGKILL)
        os.kill(home_worker_of(home), signal.SIGKILL)
    else:
        for folder in Path(home.state, "containers").iterdir():
            for pid in processes_of(folder):
                os.kill(pid, signal.SIGKILL)
