"""A run that is stopped in the middle of training: taken to hang after a minute, killed, and resumed."""

from __future__ import annotations

import os
import signal
import time

import pytest
import run_by_hand
from run_orders import Orders
from server_home import ServerHome, processes_of, wait_until


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
