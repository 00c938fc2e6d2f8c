"""`lorry.Sandbox` on a real server: programs, streams, limits on time, files, and what outlives the worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from server_asking import ask
from server_home import ServerHome, kill_and_wait, wait_until

import lorry
from lorry import exception
from lorry.ids import new_id
from lorry.sandbox import enter_files
from lorry.sandbox.limits import NoLimits
from lorry.sandbox.namespaces import NamespaceSandbox
from lorry.sdk import container_process, sandbox_files
from lorry.sdk.channel import drive
from lorry.sdk.sandbox import sandbox_spec
from lorry.wire.codec import to_json

MEGABYTE = 1 << 20


@pytest.fixture(scope="session", autouse=True)
def isolated() -> None:
    """These programs write to /tmp and fork without end: only where that stays inside."""
    if problems := NamespaceSandbox(NoLimits()).check():
        pytest.skip(problems[0])


@pytest.fixture
def sandbox(server: ServerHome) -> lorry.Sandbox:
    """One that waits for programs."""
    found = lorry.Sandbox.create(timeout=120)
    yield found
    found.terminate()


def test_a_program_s_output_and_exit_code(server: ServerHome) -> None:
    made = lorry.Sandbox.create("sh", "-c", "echo out; echo err >&2; exit 5")
    assert made.wait() == made.poll() == made.returncode == 5
    assert made.stdout.read() == "out\n"
    assert list(made.stderr) == ["err\n"]
    assert lorry.Sandbox.from_id(made.object_id).poll() == 5


def test_a_client_that_asks_again_starts_nothing_again(server: ServerHome) -> None:
    """Its connection was lost before the answer, and the program has ended meanwhile."""
    for command, code in ((("sh", "-c", "exit 3"), 3), (("nonsense",), None)):
        spec = to_json(drive(sandbox_spec(command, {})))
        asked = {"sandbox_id": new_id("sb"), "app_name": "again", "spec": spec}
        for _ in range(2):
            if code is None:
                with pytest.raises(exception.InvalidError, match="executing nonsense"):
                    ask("sandbox_create", **asked)
            else:
                assert ask("sandbox_create", **asked)["sandbox_id"] == asked["sandbox_id"]
                assert lorry.Sandbox(asked["sandbox_id"]).wait() == code
        kinds = [row["kind"] for row in ask("why", subject=asked["sandbox_id"])["decisions"]]
        assert kinds.count("start") == 1


def test_its_own_program_s_output_is_read_as_it_was_printed(server: ServerHome) -> None:
    script = "seq 60000; head -c 40000 /dev/zero | tr '\\0' x; echo; echo end"
    made = lorry.Sandbox.create("sh", "-c", script)
    wanted = "".join(f"{number}\n" for number in range(1, 60_001)) + "x" * 40_000 + "\nend\n"
    assert "".join(made.stdout) == wanted
    assert made.stdout.read() == wanted
    assert made.stderr.read() == ""


def test_what_cannot_start_says_so_at_once(server: ServerHome, sandbox: lorry.Sandbox) -> None:
    with pytest.raises(exception.InvalidError, match="executing nonsense: No such file"):
        lorry.Sandbox.create("nonsense")
    with pytest.raises(exception.InvalidError, match="executing nonsense"):
        sandbox.exec("nonsense")
    words = r"executing ls -l: No such file or directory. Give one word per argument: \(\"ls\", \"-l\"\)"
    with pytest.raises(exception.InvalidError, match=words):
        sandbox.exec("ls -l")
    with pytest.raises(exception.InvalidError, match=words):
        lorry.Sandbox.create("ls -l")
    with pytest.raises(exception.InvalidError, match="no parameter memry=; did you mean memory="):
        lorry.Sandbox.create(memry=128)
    with pytest.raises(exception.NotFoundError, match="no sandbox 'sb-nowhere'"):
        lorry.Sandbox.from_id("sb-nowhere")


def test_it_has_the_declared_environment_and_no_way_to_the_server(server: ServerHome) -> None:
    volume = lorry.Volume.from_name("sandboxed", create_if_missing=True)
    secret = lorry.Secret.from_dict({"HUB_TOKEN": "a-token"})
    made = lorry.Sandbox.create(secrets=[secret], env={"COLOUR": "red"}, volumes={"/data": volume}, workdir="/data")
    program = made.exec("sh", "-c", "pwd; echo $HUB_TOKEN $COLOUR $MORE; ls /run/lorry; env", env={"MORE": "yes"})
    first, second, *variables = program.stdout.read().splitlines()
    assert (first, second) == ("/data", "a-token red yes")
    assert not [line for line in variables if line.startswith(("LORRY_TOKEN", "LORRY_SOCKET"))]
    assert "No such file" in program.stderr.read()
    made.terminate()


def test_streams_go_both_ways_while_it_runs(sandbox: lorry.Sandbox) -> None:
    program = sandbox.exec("sh", "-c", "while read word; do echo got $word; done; echo end")
    replies = iter(program.stdout)
    for word in ("one", "two"):
        program.stdin.write(f"{word}\n")
        program.stdin.drain()
        assert next(replies) == f"got {word}\n"
    assert program.poll() is None
    program.stdin.write_eof()
    program.stdin.drain()
    assert list(replies) == ["end\n"]
    assert program.wait() == program.returncode == 0


def test_bytes_stay_bytes(sandbox: lorry.Sandbox) -> None:
    data = os.urandom(3 * MEGABYTE)
    program = sandbox.exec("cat", text=False)
    program.stdin.write(data)
    program.stdin.write_eof()
    sender = threading.Thread(target=program.stdin.drain)
    sender.start()
    assert program.stdout.read() == data
    sender.join()


def test_closing_the_stdin_of_a_program_that_has_ended_is_no_error(sandbox: lorry.Sandbox) -> None:
    program = sandbox.exec("true")
    while program.poll() is None:
        pass
    program.stdin.write_eof()
    program.stdin.drain()
    program.stdin.drain()
    other = sandbox.exec("true")
    assert other.wait() == 0
    other.stdin.write_eof()
    other.stdin.drain()


def test_a_line_that_is_too_long_is_cut_between_characters(
    sandbox: lorry.Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_process, "LONGEST_LINE", 1001)
    text = "é🚚" * 1000 + "\n"
    program = sandbox.exec("cat")
    program.stdin.write(text)
    program.stdin.write_eof()
    program.stdin.drain()
    parts = list(program.stdout)
    assert len(parts) > 5
    assert "".join(parts) == text


def test_wait_keeps_the_output_of_both_streams(sandbox: lorry.Sandbox) -> None:
    """Each is more than a pipe holds: who read one of them first would wait for ever."""
    script = f"head -c {MEGABYTE} /dev/zero >&2; head -c {MEGABYTE} /dev/zero; exit 3"
    program = sandbox.exec("sh", "-c", script, text=False)
    assert program.wait() == 3
    assert len(program.stdout.read()) == len(program.stderr.read()) == MEGABYTE


def test_output_that_nobody_reads_is_bounded_and_named(sandbox: lorry.Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_process, "UNREAD", MEGABYTE)
    program = sandbox.exec("cat", "/dev/zero")
    with pytest.raises(exception.ResourceError, match="more than 1 MiB to stdout that nobody has read"):
        program.wait()
    program.kill()


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_hundred_megabytes_pass_a_slow_reader_and_not_through_the_server_s_memory(
    server: ServerHome, sandbox: lorry.Sandbox
) -> None:
    size = 100 * MEGABYTE
    program = sandbox.exec("head", "-c", str(size), "/dev/zero", text=False)
    worker, seen, most = server.worker_pid(), len(program.stdout.read_piece()), 0
    before = resident(worker)
    assert program.poll() is None, "it has written what nobody has asked for"
    while piece := program.stdout.read_piece():
        seen += len(piece)
        most = max(most, resident(worker))
    assert seen == size
    assert program.wait() == 0
    assert most - before < 32 * MEGABYTE


def test_secrets_of_one_program_are_no_other_s(sandbox: lorry.Sandbox) -> None:
    secret, named = lorry.Secret.from_dict({"HUB_TOKEN": "a-token", "COLOUR": "red"}), "of-one-program"
    ask("secret_put", name=named, values={"OTHER": "another"}, replace=True)
    line = ("sh", "-c", "echo $HUB_TOKEN $COLOUR $MORE $OTHER")
    given = {"COLOUR": "blue", "MORE": "yes"}
    program = sandbox.exec(*line, env=given, secrets=[secret, lorry.Secret.from_name(named)], bufsize=1)
    assert program.stdout.read() == "a-token red yes another\n"
    assert sandbox.exec(*line, bufsize=-1).stdout.read() == "\n"
    with pytest.raises(exception.NotFoundError, match="missing"):
        sandbox.exec("true", secrets=[lorry.Secret.from_name("missing")])
    with pytest.raises(exception.InvalidError, match=r"takes lorry\.Secret objects"):
        sandbox.exec("true", secrets=["a-token"])


def test_what_is_not_there_says_what_to_use_instead(sandbox: lorry.Sandbox) -> None:
    with pytest.raises(exception.InvalidError, match=r"127\.0\.0\.1"):
        sandbox.tunnels()
    with pytest.raises(exception.InvalidError, match=r"exec\(\), whose process has \.stdin"):
        sandbox.stdin.write("hello")
    for options in ({"bufsize": 4096}, {"bufsize": 0}, {"bufsize": 1, "text": False}):
        with pytest.raises(exception.InvalidError, match="bufsize is -1, or 1"):
            sandbox.exec("true", **options)


def test_a_time_out_ends_the_program_and_not_the_sandbox(sandbox: lorry.Sandbox) -> None:
    assert sandbox.exec("sh", "-c", "sleep 1000 & wait", timeout=0.2).wait() == 124
    assert sandbox.exec("true").wait() == 0


def test_one_program_is_killed_alone(sandbox: lorry.Sandbox) -> None:
    victim, other = sandbox.exec("sleep", "1000"), sandbox.exec("cat")
    victim.kill()
    assert victim.wait() == 137
    assert other.poll() is None
    other.kill(signal.SIGTERM)
    assert other.wait() == 143


def test_a_time_out_of_the_sandbox_is_124(server: ServerHome) -> None:
    made = lorry.Sandbox.create(timeout=0.3)
    program = made.exec("sleep", "1000")
    with pytest.raises(exception.SandboxTimeoutError, match=r"timeout of 0.3 s.*Sandbox.create\(timeout=…\)"):
        made.wait()
    assert made.returncode == 124
    assert program.wait() == 137


def test_terminate_ends_everything_in_it(server: ServerHome) -> None:
    made = lorry.Sandbox.create()
    bomb = "for i in $(seq 50); do setsid sh -c 'while :; do sleep 0.01 & wait; done' & done; echo burning; wait"
    program = made.exec("sh", "-c", bomb)
    assert next(iter(program.stdout)) == "burning\n"
    made.terminate()
    assert made.poll() == program.wait() == 137
    with pytest.raises(exception.SandboxTerminatedError, match="it was terminated"):
        made.wait()
    assert made.wait(raise_on_termination=False) == 137
    assert made.object_id not in {found.object_id for found in lorry.Sandbox.list()}
    made.terminate()
    with pytest.raises(exception.NotFoundError, match="has ended: it was terminated"):
        made.exec("true")
    with pytest.raises(exception.NotFoundError, match="no running container 'sb-0'"):
        lorry.Sandbox("sb-0").exec("true")


def test_it_ends_with_its_app_and_lists_by_tag(server: ServerHome) -> None:
    app = lorry.App("has-sandboxes")
    with app.run():
        made = lorry.Sandbox.create(app=app, tags={"kind": "first", "who": "me"})
        lorry.Sandbox.create(app=app, tags={"kind": "second"})
        assert [found.object_id for found in lorry.Sandbox.list(tags={"kind": "first"})] == [made.object_id]
        assert len(list(lorry.Sandbox.list(app_id=app.app_id))) == 2
        made.set_tags({"kind": "third"})
        assert made.get_tags() == {"kind": "third"}
    assert made.poll() == 137
    assert made.get_tags() == {"kind": "third"}


def test_an_app_by_name_lasts_as_long_as_its_sandboxes(server: ServerHome) -> None:
    with pytest.raises(exception.NotFoundError):
        lorry.App.lookup("by-name")
    first = lorry.Sandbox.create(app=lorry.App.lookup("by-name", create_if_missing=True))
    second = lorry.Sandbox.create(app=lorry.App.lookup("by-name"))
    first.terminate()
    assert second.exec("true").wait() == 0
    second.terminate()

    def is_stopped() -> bool:
        try:
            lorry.App.lookup("by-name")
        except exception.NotFoundError as stopped:
            return "is stopped" in str(stopped)
        return False

    wait_until(is_stopped)


def test_files(sandbox: lorry.Sandbox) -> None:
    sandbox.mkdir("/tmp/a/b", parents=True)
    with sandbox.open("/tmp/a/f", "w") as file:
        file.write("one\n")
        file.flush()
        file.write("two\n")
    with sandbox.open("/tmp/a/f", "a") as file:
        file.write("three\n")
    with sandbox.open("/tmp/a/f") as file:
        assert file.readline() == "one\n"
        assert file.read() == "two\nthree\n"
    assert sandbox.exec("cat", "/tmp/a/f").stdout.read() == "one\ntwo\nthree\n"
    assert sandbox.ls("/tmp/a") == ["b", "f"]
    assert [(entry.type, entry.size) for entry in sandbox.list_files("/tmp/a")][1] == ("file", 14)
    data = os.urandom(2 * MEGABYTE)
    with sandbox.open("/tmp/big", "wb") as file:
        file.write(data)
    with sandbox.open("/tmp/big", "rb") as file:
        assert file.read() == data
    sandbox.rm("/tmp/a", recursive=True)
    with pytest.raises(exception.NotFoundError, match="/tmp/a"):
        sandbox.ls("/tmp/a")
    with pytest.raises(exception.AlreadyExistsError):
        sandbox.open("/tmp/big", "x")
    with pytest.raises(exception.InvalidError, match="absolute"):
        sandbox.open("big")


def test_a_file_s_text_is_read_in_whole_characters(sandbox: lorry.Sandbox) -> None:
    with sandbox.open("/tmp/text", "w") as file:
        file.write("één\r\ntwo\n")
    with sandbox.open("/tmp/text") as file:
        assert (file.read(1), file.readline(), file.read(2), file.read()) == ("é", "én\r\n", "tw", "o\n")
        file.seek(0)
        assert file.readlines() == ["één\r\n", "two\n"]
    with sandbox.open("/tmp/text", "rb") as file:
        assert file.read(3) == "é".encode() + b"\xc3"


def test_a_pipe_and_a_device_are_no_files(sandbox: lorry.Sandbox) -> None:
    """What a program leaves behind must not keep its reader waiting, or fill the reader's disk."""
    assert sandbox.exec("sh", "-c", "mkfifo /tmp/pipe; ln -s /dev/zero /tmp/endless").wait() == 0
    for path in ("/tmp/pipe", "/tmp/endless"):
        for mode in ("r", "a"):
            with pytest.raises(exception.ExecutionError, match=path):
                sandbox.open(path, mode)
    with pytest.raises(exception.ExecutionError, match="Is a directory"):
        sandbox.open("/tmp")
    with pytest.raises(exception.InvalidError, match="absolute"):
        sandbox.rm("/tmp/a\0b")


def test_a_name_that_goes_away_while_its_folder_is_listed_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "there").touch()
    monkeypatch.setattr(os, "listdir", lambda _folder: ["gone", "there"])
    enter_files.list_folder(str(tmp_path), "")
    assert [entry.name for entry in sandbox_files.entries(capfdbinary.readouterr().out)] == ["there"]


def test_the_same_without_blocking(server: ServerHome) -> None:
    async def go() -> None:
        made = await lorry.Sandbox.create.aio()
        program = await made.exec.aio("sh", "-c", "read a; echo $a; echo $a; echo no >&2")
        program.stdin.write("word\n")
        await program.stdin.drain.aio()
        assert [line async for line in program.stdout] == ["word\n", "word\n"]
        assert await program.stderr.read.aio() == "no\n"
        # Two readers at once, on one connection.
        program = await made.exec.aio("sh", "-c", f"head -c {MEGABYTE} /dev/zero; head -c {MEGABYTE} /dev/zero >&2")
        out, err, code = await asyncio.gather(program.stdout.read.aio(), program.stderr.read.aio(), program.wait.aio())
        assert (len(out), len(err), code) == (MEGABYTE, MEGABYTE, 0)
        async with await made.open.aio("/tmp/f", "w") as file:
            file.write("content")
        async with await made.open.aio("/tmp/f") as file:
            assert file.read() == "content"
        assert made.object_id in [found.object_id async for found in lorry.Sandbox.list.aio()]
        await made.terminate.aio()
        assert await made.poll.aio() == 137

    asyncio.run(go())


CLIENT = """
import lorry, sys, time
lorry.Sandbox.from_id(sys.argv[1]).exec("sleep", sys.argv[2])
print("started", flush=True)
time.sleep(1000)
"""


def test_a_program_ends_with_the_client_that_started_it(sandbox: lorry.Sandbox) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, sandbox.object_id, "1234567"], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "started\n"
    seen = ("sh", "-c", "ps ax | grep -c '[s]leep 1234567'")
    assert sandbox.exec(*seen).stdout.read() == "1\n"
    client.kill()
    client.wait()
    client.stdout.close()
    wait_until(lambda: sandbox.exec(*seen).stdout.read() == "0\n")


def test_a_sandbox_outlives_the_worker_and_its_programs_do_not(own_server: ServerHome) -> None:
    made = lorry.Sandbox.create(
        "sh", "-c", "echo before; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo after; exit 6"
    )
    ended = lorry.Sandbox.create("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 7")
    program = made.exec("sleep", "1000")
    made.set_tags({"kept": "yes"})
    os.kill(own_server.keeper_pid() or 0, signal.SIGSTOP)
    kill_and_wait(own_server.worker_pid())
    os.kill(own_server.keeper_pid() or 0, signal.SIGCONT)
    with pytest.raises(exception.NotFoundError, match="it ended with the server"):
        program.wait()
    assert made.poll() is None
    assert made.get_tags() == {"kept": "yes"}
    assert made.exec("sh", "-c", "ps ax | grep -c '[s]leep 1000'").stdout.read() == "0\n"
    for waiting in (made, ended):
        waiting.open("/tmp/go", "w").close()
    assert (made.wait(), ended.wait()) == (6, 7)
    assert made.stdout.read() == "before\nafter\n"


def test_the_end_of_a_sandbox_while_no_server_was_there_is_known(own_server: ServerHome) -> None:
    made = lorry.Sandbox.create("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 8")
    overdue = lorry.Sandbox.create(timeout=1)
    made.exec("sh", "-c", "sleep 0.3; touch /tmp/go & setsid sh -c 'sleep 1; touch /tmp/go' &").wait()
    keeper, worker = own_server.keeper_pid() or 0, own_server.worker_pid()
    os.kill(keeper, signal.SIGSTOP)
    record = next(path for path in (own_server.state / "containers").glob(f"{made.object_id}/exit"))
    kill_and_wait(worker)
    wait_until(lambda: record.read_text(), 20)
    os.kill(keeper, signal.SIGCONT)
    assert lorry.Sandbox.from_id(made.object_id).wait() == 8
    with pytest.raises(exception.SandboxTimeoutError):
        overdue.wait()
