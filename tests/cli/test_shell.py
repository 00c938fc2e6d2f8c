"""`lorry shell` and `lorry container exec`, in pipes and on a terminal."""

from __future__ import annotations

import json
import os
import signal
import termios
from collections.abc import Callable

import pexpect
import pytest
from cli_terminal import Terminal
from server_home import wait_until


def containers(lorry: Terminal) -> list[str]:
    return [row["container_id"] for row in json.loads(lorry("container", "list", "--json").stdout)]


def test_in_a_pipe_it_is_sh_where_the_function_runs(lorry: Terminal) -> None:
    script = "echo $KEY $DOOR $WALL\npython -c 'import rooms; print(rooms.kitchen.local())'\necho no >&2\nexit 4\n"
    done = lorry("shell", "rooms.py::kitchen", stdin=script, code=4)
    assert done.stdout == "under-the-mat oak white\ntea\n"
    assert done.stderr.splitlines()[-1] == "no"
    assert containers(lorry) == []


def test_one_line_in_the_container_of_an_image(lorry: Terminal) -> None:
    assert lorry("shell", "rooms.py::image", "--cmd", "echo $WALL; exit 3", code=3).stdout == "white\n"
    assert lorry("shell", "--cmd", "id -u").stdout == "0\n"


def test_a_name_that_is_none_lists_what_there_is(lorry: Terminal) -> None:
    done = lorry("shell", "rooms.py::attic", code=1)
    assert "no function, class or image 'attic'" in done.stderr
    assert "rooms.py::cellar" in done.stderr
    assert "has several functions" in lorry("shell", "rooms.py", code=1).stderr
    assert "no running container 'ct-0'" in lorry("shell", "ct-0", code=1).stderr


def test_a_program_in_a_running_container(lorry: Terminal) -> None:
    running = lorry.typed("run", "rooms.py::cellar")
    running.expect("dark")
    (container,) = containers(lorry)
    script = "read word; echo $word $LORRY_TOKEN; ps ax | grep -q '[r]untime/main.py' && echo seen; exit 6"
    done = lorry("container", "exec", container, "sh", "-c", script, stdin="hello\n", code=6)
    assert done.stdout == "hello\nseen\n"
    assert lorry("shell", container, "--cmd", "true").stdout == ""
    running.sendintr()
    running.expect(pexpect.EOF)


SANDBOXED = """
import lorry

app = lorry.App("quiet")


@app.local_entrypoint()
def main():
    made = lorry.Sandbox.create("echo", "from inside", app=app)
    print("code", made.wait(), made.stdout.read().upper(), end="")
"""


def test_what_a_sandbox_prints_is_not_shown_by_itself(lorry: Terminal, program: Callable[[str], str]) -> None:
    assert lorry("run", "-q", program(SANDBOXED)).stdout == "code 0 FROM INSIDE\n"
    ended = json.loads(lorry("container", "list", "--all", "--json").stdout)
    made = next(row["container_id"] for row in ended if row["container_id"].startswith("sb-"))
    assert "it exited with code 0" in lorry("why", made).stdout


def test_a_reader_that_has_enough_ends_the_program_and_its_container(lorry: Terminal) -> None:
    done = lorry.shell("lorry shell --cmd yes | head -n 1; lorry shell --cmd 'yes >&2' 2>&1 >/dev/null | head -n 1")
    assert done.stdout == "y\ny\n"
    assert "Traceback" not in done.stderr
    wait_until(lambda: containers(lorry) == [])


def settings(terminal: pexpect.spawn) -> list[object]:
    return termios.tcgetattr(terminal.child_fd)


def test_on_a_terminal_it_has_its_size_its_keys_and_its_exit_code(lorry: Terminal) -> None:
    terminal = lorry.typed("shell", "rooms.py::kitchen", columns=90)
    before = settings(terminal)
    terminal.expect(r"[#$] $")
    assert settings(terminal) != before
    terminal.send("stty size; echo $TERM\r")
    terminal.expect("24 90\r\nxterm\r\n")
    terminal.setwinsize(30, 100)
    terminal.send("while [ \"$(stty size)\" != '30 100' ]; do sleep 0.05; done; echo it is $((40 + 2))\r")
    terminal.expect("it is 42\r\n")
    terminal.send("sleep 1000\r")
    terminal.expect("sleep 1000\r\n")
    terminal.sendintr()  # to what runs inside; the shell goes on
    terminal.send("sh -c 'echo begun; exec sleep 2000'\r")
    terminal.expect("begun\r\n")
    terminal.send("\x1a")  # Ctrl-Z
    terminal.expect("Stopped")
    terminal.send("kill -9 %1; wait; echo still $((40 + 3))\r")
    terminal.expect("still 43\r\n")
    terminal.send("exit 7\r")
    terminal.expect(pexpect.EOF)
    assert settings(terminal) == before
    terminal.close()
    assert terminal.exitstatus == 7
    wait_until(lambda: containers(lorry) == [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_the_command_is_told_to_end(lorry: Terminal, number: signal.Signals) -> None:
    terminal = lorry.typed("shell")
    before = settings(terminal)
    terminal.expect(r"[#$] $")
    os.kill(terminal.pid, number)
    terminal.expect(pexpect.EOF)
    assert settings(terminal) == before
    terminal.close()
    assert terminal.exitstatus == 128 + number
    wait_until(lambda: containers(lorry) == [])


def test_the_terminal_is_restored_when_the_server_dies(fresh: Terminal) -> None:
    terminal = fresh.typed("shell")
    before = settings(terminal)
    terminal.expect(r"[#$] $")
    os.kill(json.loads((fresh.state / "server.json").read_text())["pid"], signal.SIGKILL)
    terminal.expect("it ended with the server")
    terminal.expect(pexpect.EOF)
    assert settings(terminal) == before
    terminal.close()
    assert terminal.exitstatus == 1
