"""The worker dies when a checkpoint is committed and its container has not heard of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import faulty
import pytest
from server_home import ServerHome, kill_and_wait, wait_until
from test_training_faults import PAUSE, STEPS, Watched

import lorry


def head_on_disk(home: ServerHome) -> tuple[int, str]:
    """Step and manifest, of the only run; no server is asked."""
    with closing(sqlite3.connect(f"file:{home.state / 'lorry.db'}?mode=ro", uri=True)) as database:
        (row,) = database.execute("SELECT head_step, head_manifest FROM run")
    return row


def history(run: Watched, head: str) -> list[int]:
    """The steps of its checkpoints, from the head through the parents to the first one; that comes first."""
    found = {path.stem.rpartition("-")[2]: json.loads(path.read_text()) for path in run.folder.glob("m/*.json")}
    wanted: str | None = head
    steps = []
    while wanted is not None:
        steps.append(found[wanted]["step"])
        wanted = found[wanted]["parent"]
    assert len(steps) == len(found), "a checkpoint that is not in the chain"
    return steps[::-1]


def test_the_worker_dies_between_a_commit_and_its_answer(
    own_server: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container asks the next one again, and hears that it is done."""
    once = own_server.root / "fault"
    monkeypatch.setenv("LORRY_FAULT", "worker.after_head_swap:4:stop")
    monkeypatch.setenv("LORRY_FAULT_ONCE", str(once))
    again = lorry.App("faulty-answer")
    policy = lorry.Resumable(every=faulty.EVERY, grace=faulty.GRACE, keep_last=STEPS, keep_every=None)
    train = again.function(timeout=120, resumable=policy)(faulty.train.get_raw_f())
    with again.run():
        call = train.spawn(STEPS, PAUSE)
        wait_until(Path(f"{once}.worker.after_head_swap").exists, 30)
        committed, _ = head_on_disk(own_server)
        kill_and_wait(own_server.worker_pid())
        run = Watched(call)
        shown = run.ends_well()
    assert run.steps() == list(range(1, STEPS + 1))
    assert (shown["attempts"], shown["interruptions"]) == (1, 0)
    steps = history(run, head_on_disk(own_server)[1])
    assert steps.index(committed) == 3
    assert all(before < after for before, after in pairwise(steps)), "a step was committed twice"
    assert [row["step"] for row in shown["checkpoints"]] == steps
