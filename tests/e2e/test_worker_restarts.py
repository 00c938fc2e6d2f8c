"""What goes on when the worker is killed: redaction of output, limits on a boot, uploads."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import adopted
import pytest
from server_asking import ask, log_lines
from server_home import ServerHome, wait_until

from lorry import exception
from lorry.sdk.channel import Channel, drive
from lorry.sdk.container_process import start_program
from lorry.sdk.steps import Ask
from lorry.sdk.upload import PIECE, upload_files


def kill_worker(home: ServerHome) -> None:
    before = home.worker_pid()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: ask("server_status")["pid"] != before, 20)


def test_secrets_stay_blacked_out_after_the_worker_s_death(own_server: ServerHome) -> None:
    ask("secret_put", name="hub", values={"HUB_TOKEN": "the-first-token"})
    with adopted.app.run():
        app_id = ask("app_lookup", app="adopted")["app_id"]
        call = adopted.tell_twice.spawn()
        wait_until(lambda: "before ***" in log_lines(app_id), 30)
        # The container has the value that it was started with, whatever the secret is by now.
        ask("secret_put", name="hub", values={"HUB_TOKEN": "the-second-token"})
        kill_worker(own_server)
        (container,) = ask("container_list")["containers"]
        go_on = ("sh", "-c", "touch ~/go-on")
        assert drive(start_program(container["container_id"], go_on, {})).wait() == 0
        assert call.get(timeout=30) == "told"
        wait_until(lambda: len(log_lines(app_id)) == 2)
        assert log_lines(app_id) == ["before ***", "after ***"]
    assert "the-first-token" not in "".join(path.read_text() for path in (own_server.state / "logs").iterdir())


def test_a_container_that_was_booting_when_the_worker_died_still_has_a_limit(own_server: ServerHome) -> None:
    ask("secret_put", name="hub", values={"HUB_TOKEN": "not-used-here"})
    with adopted.app.run():
        app_id = ask("app_lookup", app="adopted")["app_id"]
        call = adopted.NeverUp().work.spawn()
        wait_until(lambda: "booting" in log_lines(app_id), 30)
        (first,) = ask("container_list")["containers"]
        kill_worker(own_server)
        wait_until(lambda: [c["state"] for c in ask("container_list")["containers"]] == ["booting"], 20)
        assert ask("container_list")["containers"][0]["container_id"] == first["container_id"]
        began = time.monotonic()
        with pytest.raises(exception.FunctionTimeoutError, match="longer than 3 s"):
            call.get(timeout=30)
        assert time.monotonic() - began < 12


def test_an_upload_over_a_restart_arrives_whole(own_server: ServerHome, tmp_path: Path) -> None:
    data = os.urandom(5 * PIECE + 17)
    source = tmp_path / "weights"
    source.write_bytes(data)
    ask("server_status")
    steps = upload_files([source])
    channel = Channel()
    pieces = 0
    step = next(steps)
    try:
        while True:
            if pieces == 3:
                kill_worker(own_server)
            assert isinstance(step, Ask)
            reply = channel.ask(step.method, step.params)
            pieces += step.method == "blob_put"
            step = steps.send(reply)
    except StopIteration as ended:
        (digest,) = ended.value
    finally:
        channel.close()
    assert (own_server.state / "blobs" / digest[:2] / digest).read_bytes() == data
    assert pieces == 3 + 1 + 6  # three before, the refused one, and all of it again
