"""A `Box`: one tier of isolation with fresh folders, and programs that run in /usr/bin/python3."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from lorry.ids import new_id
from lorry.sandbox.detect import choose
from lorry.sandbox.interface import Exit, Sandbox, SandboxSpec
from lorry.sandbox.limits import find_limits
from lorry.sandbox.running import RunningSandbox

PYTHON = "/usr/bin/python3"
PATH = ("PATH", "/usr/bin:/bin")
LIMITS = find_limits()
HERE = Path(__file__).parent


class Box:
    def __init__(self, tier: str, base: Path) -> None:
        self.tier = tier
        self.base = base
        self.sandbox: Sandbox = choose(tier, LIMITS)
        self.features = LIMITS.features
        self.started: list[RunningSandbox] = []

    def spec(self, code: str, argv: tuple[str, ...] = (), **changes: object) -> SandboxSpec:
        container_id = new_id("ct")
        folder = self.base / container_id
        folder.mkdir(mode=0o700)
        defaults: dict[str, object] = {"env": (PATH,), "cwd": "/"}
        return SandboxSpec(
            container_id=container_id,
            argv=argv or (PYTHON, "-I", "-S", "-u", "-c", code),
            folder=str(folder),
            **(defaults | changes),
        )

    async def start(self, code: str, **changes: object) -> RunningSandbox:
        process = await self.sandbox.start(self.spec(code, **changes))
        assert isinstance(process, RunningSandbox)
        self.started.append(process)
        return process

    def kill_all(self) -> None:
        """Sandboxes outlive those who start them, failed tests included."""
        for process in self.started:
            process.kill()

    def run(self, code: str, **changes: object) -> tuple[Exit, str, str]:
        """The exit and what it wrote, from start to end."""

        async def go() -> tuple[Exit, str, str]:
            process = await self.start(code, **changes)
            end = await process.wait()
            out, err = (drain(fd) for fd in process.outputs)
            process.close()
            return end, out, err

        return asyncio.run(go())

    def prints(self, code: str, **changes: object) -> str:
        """What a program prints that ends well."""
        end, out, err = self.run(code, **changes)
        assert end.code == 0, f"{end.describe()}\n{out}\n{err}"
        return out.strip()

    def volume(self, name: str, **files: str) -> Path:
        """A directory that the program may write."""
        path = self.base / name
        path.mkdir()
        for file, text in files.items():
            (path / file).write_text(text)
        owner = getattr(self.sandbox, "owner", None)
        if owner is not None:
            for member in (path, *path.iterdir()):
                os.chown(member, owner, owner)
        return path


def drain(fd: int) -> str:
    """Everything up to end of file. BlockingIOError: a process that could still write is alive."""
    data = b""
    while chunk := os.read(fd, 65536):
        data += chunk
    return data.decode()


async def next_line(fd: int) -> str:
    """One line that a running program prints."""
    loop = asyncio.get_running_loop()
    data = b""
    while not data.endswith(b"\n"):
        ready = loop.create_future()
        loop.add_reader(fd, lambda ready=ready: ready.done() or ready.set_result(None))
        await ready
        loop.remove_reader(fd)
        piece = os.read(fd, 1)
        assert piece, "the program ended without a line"
        data += piece
    return data.decode().strip()


def run_forbidding(calls: dict[int, int], code: str) -> str:
    """Output of Python code run under a seccomp filter: system call number → errno."""
    source = f"import sys; sys.path.insert(0, {str(HERE)!r}); import forbid; forbid.install({calls!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", source],
        env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
