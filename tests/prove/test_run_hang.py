"""Runs that hang in the middle of training: after a minute they are killed, and resumed, and in the end given up."""

from __future__ import annotations

import os
import signal
import time

import faulty
import pytest
import run_by_hand
from run_orders import Orders, run_of
from server_home import ServerHome, processes_of, wait_until

from lorry import exception


@pytest.mark.prove
def test_a_stopped_run_goes_on_in_a_new_attempt(own_server: ServerHome) -> None:
    with run_by_hand.app.run():
        call = run_by_hand.obey_long.spawn()
        orders = Orders(call.object_id)
        orders.do("save", step=5)
        orders.do("tell", step=5)
        wait_until(lambda: orders.show()["step"] == 5)
        (attempt,) = orders.show()["attempt_rows"]
        time.sleep(2.5)  # two looks of the server
        orders.do("tell", step=6)
        for pid in processes_of(own_server.state / "containers" / attempt["container_id"]):
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: len(orders.show()["attempt_rows"]) == 2, 120)
        hung, _ = orders.show()["attempt_rows"]
        assert hung["ended"] == "killed"
        assert "so it was taken to hang at step 6" in hung["reason"]
        assert orders.do("begin")["head"]["step"] == 5
        orders.give("finish", value=1)
        assert call.get(timeout=60) == 1


@pytest.mark.prove
@pytest.mark.usefixtures("own_server")
def test_a_run_that_hangs_at_the_same_step_each_time_is_given_up_with_the_reason() -> None:
    """The first attempt has saved; three more come no further."""
    with faulty.app.run():
        call = faulty.train_for_long.spawn(60, 0.1, "deadlock")
        run = run_of(call.object_id)["run_id"]
        with pytest.raises(exception.ContainerLostError, match=r"taken to hang at step \d+.*3 attempts in a row"):
            call.get(timeout=400)
        shown = run_of(run)
    assert (shown["state"], shown["head_step"], shown["attempts"]) == ("failed", 20, 4)
    for row in shown["attempt_rows"]:
        assert row["ended"] == "killed"
        assert 60 < row["ended_at"] - row["started_at"] < 80
