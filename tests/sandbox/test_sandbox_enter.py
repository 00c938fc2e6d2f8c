"""A second program in a running sandbox: the same walls, its own streams, and an end with either side."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sandbox_box import PATH, Box

from lorry.errors import InvalidError, NotFoundError
from lorry.sandbox.entering import Command, Entered, enter
from lorry.sandbox.interface import SandboxSpec
from lorry.sandbox.procfs import is_running, start_of
from lorry.sandbox.running import RunningSandbox

SLEEPER = ("sleep", "1000")


class Place:
    """A running sandbox to be entered."""

    def __init__(self, box: Box, spec: SandboxSpec, process: RunningSandbox) -> None:
        self.box, self.spec, self.process = box, spec, process

    def enter(self, *argv: str, **options: Any) -> Entered:
        isolate = self.box.tier != "process"
        folder = "/tmp" if isolate else self.spec.folder
        command = Command(argv=argv, env=dict([PATH]), **({"cwd": folder} | options))
        return enter(self.box.sandbox, self.process, self.spec, command, isolate)

    def run(self, *argv: str, stdin: bytes = b"", **options: Any) -> tuple[int, str, str]:
        """Its exit code (negative: the signal) and what it wrote."""
        entered = self.enter(*argv, **options)
        for fd in filter(None, (entered.stdin, entered.stdout, entered.stderr)):
            os.set_blocking(fd, True)
        os.write(entered.stdin, stdin)
        os.close(entered.stdin)
        out, err = everything(entered.stdout), everything(entered.stderr)
        return exit_code(entered), out, err


def everything(fd: int | None) -> str:
    data = b""
    if fd is not None:
        try:
            while piece := os.read(fd, 65536):
                data += piece
        except OSError:  # a terminal without a program
            pass
        os.close(fd)
    return data.decode()


def exit_code(entered: Entered) -> int:
    """Waits for its end."""
    entered.control.setblocking(True)
    words = entered.control.recv(64).split()
    entered.control.close()
    assert entered.joiner.wait() == 0
    return int(words[1])


def inside(box: Box, use: Callable[[Place], object], **changes: object) -> None:
    """`use` a sandbox with a program that sleeps, in a thread."""

    async def go() -> None:
        spec = box.spec("", argv=SLEEPER, **changes)
        process = await box.sandbox.start(spec)
        assert isinstance(process, RunningSandbox)
        box.started.append(process)
        await asyncio.to_thread(use, Place(box, spec, process))
        process.kill()
        await process.wait()
        process.close()

    asyncio.run(go())


def test_it_has_its_own_streams_and_its_exit_code(box: Box) -> None:
    def use(place: Place) -> None:
        script = "read word; echo got $word; echo problem >&2; exit 3"
        assert place.run("sh", "-c", script, stdin=b"it\n") == (3, "got it\n", "problem\n")
        assert place.run("sh", "-c", "kill -TERM $$")[0] == -signal.SIGTERM

    inside(box, use)


def test_it_has_the_walls_of_the_sandbox_s_own_program(confined: Box, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")

    def use(place: Place) -> None:
        script = (
            f"cat {secret} 2>&1; id -u; touch /usr/x 2>&1; ls /proc | grep -c '^[0-9]'; hostname;"
            "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; unshare -U true 2>&1"
        )
        _, out, _ = place.run("sh", "-c", script)
        assert "of the host" not in out
        assert "Read-only file system" in out
        assert place.spec.container_id in out
        values = dict(line.split(":\t") for line in out.splitlines() if ":\t" in line)
        assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == 0
        assert values["NoNewPrivs"] == "1"
        assert values["Seccomp"] == "2"
        assert "Operation not permitted" in out

    inside(confined, use)


def test_it_sees_the_sandbox_s_network_and_files(confined: Box) -> None:
    def use(place: Place) -> None:
        assert place.run("sh", "-c", "echo kept > file") == (0, "", "")
        assert place.run("cat", "file") == (0, "kept\n", "")
        _, out, _ = place.run("cat", "/proc/net/dev")
        assert [line.split(":")[0].strip() for line in out.splitlines() if ":" in line] == ["lo"]

    inside(confined, use, block_network=True)


def test_nothing_of_the_server_is_open_in_it(box: Box) -> None:
    def use(place: Place) -> None:
        _, out, _ = place.run("sh", "-c", "ls /proc/$$/fd")
        assert out.split() == ["0", "1", "2"]
        _, out, _ = place.run("env")
        names = {line.partition("=")[0] for line in out.splitlines()}
        assert names <= {"PATH", "HOME", "TMPDIR", "PWD", "_", "SHLVL"}

    inside(box, use)


def test_a_terminal_is_the_sandbox_s_own(box: Box) -> None:
    def use(place: Place) -> None:
        code, out, _ = place.run("sh", "-c", "tty; stty size; : < $(tty) && echo may be opened", terminal=(30, 90))
        assert code == 0
        assert out.split("\r\n")[:3] == [out.split("\r\n")[0], "30 90", "may be opened"]
        assert out.startswith("/dev/pts/")

    inside(box, use)


def test_what_cannot_be_executed_says_so(box: Box) -> None:
    def use(place: Place) -> None:
        with pytest.raises(InvalidError, match="executing nonsense: No such file"):
            place.run("nonsense")
        with pytest.raises(InvalidError, match="entering the working directory /nowhere"):
            place.run("true", cwd="/nowhere")

    inside(box, use)


def test_an_ended_sandbox_cannot_be_entered(confined: Box) -> None:
    async def go() -> None:
        spec = confined.spec("", argv=("true",))
        process = await confined.sandbox.start(spec)
        assert isinstance(process, RunningSandbox)
        await process.wait()
        with pytest.raises(NotFoundError, match="has ended"):
            Place(confined, spec, process).enter("true")
        process.close()

    asyncio.run(go())


def nap() -> str:
    """Seconds for sleep(1), by which the process is found on the host."""
    return f"1{os.urandom(4).hex().translate(str.maketrans('abcdef', '123456'))}"


async def sleeper(seconds: str) -> tuple[int, int]:
    """Pid on this host, and start, of who sleeps so long."""
    async with asyncio.timeout(20):
        while True:
            for name in filter(str.isdigit, os.listdir("/proc")):
                started = start_of(int(name))
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{name}/cmdline").read_bytes() == f"sleep\0{seconds}\0".encode():
                        return int(name), started
            await asyncio.sleep(0.01)


async def gone(pid: int, started: int) -> None:
    async with asyncio.timeout(20):
        while is_running(pid, started):
            await asyncio.sleep(0.01)


def living(box: Box, work: Callable[[Place], Awaitable[None]]) -> None:
    async def go() -> None:
        spec = box.spec("", argv=SLEEPER)
        process = await box.sandbox.start(spec)
        assert isinstance(process, RunningSandbox)
        box.started.append(process)
        await work(Place(box, spec, process))
        process.kill()
        await process.wait()
        process.close()

    asyncio.run(go())


def test_a_signal_reaches_its_process_group(box: Box) -> None:
    async def work(place: Place) -> None:
        seconds = nap()
        entered = place.enter("sh", "-c", f"sleep {seconds} & wait")
        await sleeper(seconds)
        entered.control.send(bytes([signal.SIGINT]))
        assert await asyncio.to_thread(exit_code, entered) == -signal.SIGINT

    living(box, work)


def test_it_ends_when_the_server_lets_go_of_it(box: Box) -> None:
    """As the kernel does for a server that is killed."""

    async def work(place: Place) -> None:
        seconds = nap()
        entered = place.enter("sleep", seconds)
        pid, started = await sleeper(seconds)
        assert pid == entered.pid
        entered.control.close()
        await gone(pid, started)
        await asyncio.to_thread(entered.joiner.wait)

    living(box, work)


def test_what_it_leaves_behind_ends_with_the_sandbox(confined: Box) -> None:
    async def work(place: Place) -> None:
        seconds = nap()
        entered = place.enter("setsid", "--fork", "sleep", seconds)
        pid, started = await sleeper(seconds)
        assert await asyncio.to_thread(exit_code, entered) == 0
        place.process.kill()
        await place.process.wait()
        await gone(pid, started)

    living(confined, work)


def test_without_namespaces_what_it_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    async def work(place: Place) -> None:
        seconds = nap()
        entered = place.enter("sh", "-c", f"setsid --fork sleep {seconds}; read word")
        pid, started = await sleeper(seconds)
        os.write(entered.stdin, b"\n")
        assert await asyncio.to_thread(exit_code, entered) == 0
        assert not is_running(pid, started)

    living(Box("process", tmp_path), work)


def test_files_are_read_and_written_as_the_sandbox_s_user(box: Box) -> None:
    def use(place: Place) -> None:
        folder = "/tmp" if box.tier != "process" else place.spec.folder
        path = f"{folder}/data"
        content = os.urandom(200_000)

        def do(verb: str, where: str, option: str = "", stdin: bytes = b"") -> tuple[int, str, str]:
            return place.run(stdin=stdin, file=(verb, where, option))

        assert do("write", path, "w", content[:1000]) == (0, "", "")
        assert do("write", path, "x")[::2] == (1, f"17 File exists: {path}")
        assert do("mkdir", f"{folder}/a/b", "p") == (0, "", "")
        assert do("remove", f"{folder}/a", "r") == (0, "", "")
        assert do("remove", path) == (0, "", "")
        assert do("read", path)[::2] == (1, f"2 No such file or directory: {path}")
        if box.tier != "process":  # that one would write to the machine's own
            assert do("write", "/usr/new-file", "w")[0] == 1

    inside(box, use)


def test_a_link_in_the_sandbox_leads_nowhere_else(confined: Box, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")

    def use(place: Place) -> None:
        assert place.run("ln", "-s", str(secret), "link")[0] == 0
        assert place.run(file=("read", "/tmp/link", ""))[:2] == (1, "")

    inside(confined, use)
