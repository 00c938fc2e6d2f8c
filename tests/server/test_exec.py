"""Streams of programs in containers, without a sandbox: what the worker does with its descriptors and threads."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from lorry.errors import InvalidError
from lorry.sandbox.entering import Entered
from lorry.server import exec as exec_module
from lorry.server.exec import Exec, Execs


class Joiner:
    def wait(self) -> int:
        return 0


def program(stdin: int = -1) -> tuple[Exec, socket.socket]:
    """One that runs, and the far end of its control socket."""
    near, far = socket.socketpair()
    near.setblocking(False)
    entered = Entered(pid=0, control=near, joiner=Joiner(), stdin=stdin, stdout=-1, stderr=None)  # type: ignore[arg-type]
    return Exec("ex-1", "ct-1", 0, entered, False), far


def execs() -> Execs:
    return Execs(None, SimpleNamespace(isolated=True))  # type: ignore[arg-type]


def test_what_waits_for_an_ended_program_is_not_written_to_the_file_that_got_its_descriptor() -> None:
    async def go() -> None:
        unread, stdin = os.pipe()
        os.set_blocking(stdin, False)
        found, control = program(stdin)
        owner = execs()
        writing = asyncio.ensure_future(owner.write(found, bytes(1 << 20), False))
        while not found.waiters:  # until the pipe is full
            await asyncio.sleep(0)
        other, innocent = os.pipe()
        control.close()
        owner._ended(found)
        os.dup2(innocent, stdin)
        with pytest.raises(InvalidError, match="does not read its stdin"):
            await writing
        os.set_blocking(other, False)
        with pytest.raises(BlockingIOError):
            os.read(other, 1)
        for fd in (unread, other, innocent, stdin):
            os.close(fd)

    asyncio.run(go())


def test_a_program_that_has_ended_is_not_kept_until_its_time_out() -> None:
    async def go() -> None:
        found, control = program()
        found.timer = asyncio.get_running_loop().call_later(1000, print)
        control.send(b"exit 3\n")
        execs()._ended(found)
        control.close()
        assert found.code == 3
        assert found.timer.cancelled()

    asyncio.run(go())


def test_sandboxes_that_make_their_joiners_wait_leave_the_worker_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = threading.Event()
    begun: list[Any] = []

    def enter(*_: Any) -> Any:
        freed.wait()
        raise InvalidError("at last")

    async def described(container: Any) -> Any:
        begun.append(container)
        return SimpleNamespace(env={}, cwd="/")

    async def go() -> None:
        spec = SimpleNamespace(code=SimpleNamespace(module=""))
        container: Any = SimpleNamespace(process=object(), alive=True, spec=spec)
        owner = Execs(None, SimpleNamespace(isolated=True, describe=described))  # type: ignore[arg-type]
        starts = [asyncio.ensure_future(owner.start(container, 0, argv=("true",), env={})) for _ in range(64)]
        while len(begun) < len(starts):
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # now each of them has asked for a thread
        try:
            async with asyncio.timeout(10):
                assert await asyncio.to_thread(lambda: "free") == "free"
        finally:
            freed.set()
            assert {type(one) for one in await asyncio.gather(*starts, return_exceptions=True)} == {InvalidError}

    monkeypatch.setattr(exec_module, "enter", enter)
    asyncio.run(go())
