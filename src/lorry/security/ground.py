"""The ground on which attacks are run: a throw-away folder with canaries in it, a stand-in for the server, and a
neighbour in a container of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

from lorry.errors import Error
from lorry.ids import new_id
from lorry.sandbox.interface import Feature, Mount, Sandbox, SandboxProcess, SandboxSpec
from lorry.security.attacks import ATTACKS, HERE, PROGRAMS, SUCCEEDED, Attack, Verdict

MEBIBYTES, PIDS = 64, 16
"""The limits that bombs try to pass; the interpreter alone takes some 10 MiB."""
PATIENCE = 30.0
"""Seconds for one attack. Each takes a fraction of one; a program that hangs has not succeeded."""
VICTIM = Path(__file__).parent / "victim.py"
PAUSE = "import signal; print('ready', flush=True); signal.pause()"


def canary() -> str:
    return f"canary-{secrets.token_hex(16)}"


class Ground:
    """For one tier. `base`: an empty folder of mode 0700. Programs are told digests of canaries, never canaries: their
    own memory and arguments must not hold what they look for."""

    def __init__(self, sandbox: Sandbox, base: Path, groups: frozenset[Feature]) -> None:
        self._sandbox = sandbox
        self._base = base
        self._groups = groups
        self._isolated = sandbox.name != HERE
        self._canaries = {name: canary() for name in ("database", "foreign", "home", "server", "neighbour")}
        self._mark = f"neighbour-{secrets.token_hex(8)}"
        self._abstract = f"lorry-{secrets.token_hex(8)}"
        self._owner: int | None = getattr(sandbox, "owner", None)
        self._paths: dict[str, Path] = {}
        self._port = 0
        self._neighbour: SandboxProcess | None = None

    async def run(self, attacks: Sequence[Attack] = ATTACKS) -> dict[str, Verdict]:
        """Attack → verdict; the neighbour is a new one for each, since some kill it."""
        found = {}
        async with self._prepared():
            for attack in attacks:
                try:
                    line = await self._attack(attack)
                except Error:
                    line = "cannot: this tier could not start it"
                found[attack.name] = attack.judge(self._sandbox.name, line, groups=self._groups)
        return found

    @contextlib.asynccontextmanager
    async def _prepared(self) -> AsyncIterator[None]:
        for folder in ("volumes", "foreign", "outside", "frozen", "runner", "run", "containers"):
            (self._base / folder).mkdir()
        self._paths = {name: self._base / name / "file" for name in ("foreign", "outside", "frozen")}
        self._paths["database"] = self._base / "journal.db"
        with tempfile.NamedTemporaryFile(prefix=".lorry-canary-", dir=Path.home()) as home:
            self._paths["home"] = Path(home.name)
            for name in ("database", "foreign", "home"):
                self._paths[name].write_text(self._canaries[name])
            (self._base / "runner/main.py").write_text("the platform's own code")
            for folder in ("volumes", "runner", "run", "frozen"):
                (self._base / folder).chmod(0o755)
            if self._owner is not None:
                os.chown(self._base / "volumes", self._owner, self._owner)
            with self._victim():
                yield

    @contextlib.contextmanager
    def _victim(self) -> Iterator[None]:
        command = [sys.executable, "-I", VICTIM, self._paths["database"], self._base / "run/socket", self._abstract]
        with subprocess.Popen(
            list(map(str, command)),
            env={"SECRET": self._canaries["server"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as victim:
            assert victim.stdout is not None
            self._port = int(victim.stdout.readline())
            yield
            victim.communicate()

    async def _attack(self, attack: Attack) -> str:
        """What it says of itself; what survives its container has succeeded without a word."""
        neighbour = None
        if attack.target == "neighbour":
            neighbour = await self._sandbox.start(self._spec((PAUSE, self._mark), secret=self._canaries["neighbour"]))
            await read_line(neighbour.outputs[0])
        mark = new_id("ct")
        facts = self._facts(attack, neighbour.pid if neighbour else 0) | {"run": mark}
        process = await self._sandbox.start(self._spec_of(attack, facts))
        try:
            line = await asyncio.wait_for(read_line(process.outputs[0]), PATIENCE)
        except TimeoutError:
            line = ""
        process.kill()
        await process.wait()
        process.close()
        survivors = end_marked(mark)
        if neighbour is not None:
            neighbour.kill()
            await neighbour.wait()
            neighbour.close()
            end_marked(self._mark)
        return f"{SUCCEEDED}: it outlived its container" if survivors else line

    def _facts(self, attack: Attack, pid: int) -> dict[str, object]:
        of_database = attack.program == "server_descriptor"
        secret = self._canaries.get("database" if of_database else attack.target, "")
        return {
            "path": str(self._paths.get(attack.target, "")),
            "digest": hashlib.sha256(secret.encode()).hexdigest(),
            "volume": "/volume" if self._isolated else str(self._base / "volumes"),
            "runner": "/opt/runner/main.py" if self._isolated else str(self._base / "runner/main.py"),
            "socket": "/run/server/socket" if self._isolated else str(self._base / "run/socket"),
            "port": self._port,
            "abstract": self._abstract,
            "mark": self._mark,
            "pid": pid,
            "pids": PIDS,
            "mebibytes": MEBIBYTES,
        }

    def _spec_of(self, attack: Attack, facts: Mapping[str, object]) -> SandboxSpec:
        code = (PROGRAMS / f"{attack.program}.py").read_text()
        return self._spec((code, json.dumps(facts)), block_network=attack.block_network)

    def _spec(self, arguments: tuple[str, ...], *, secret: str = "", block_network: bool = False) -> SandboxSpec:
        """Without isolation nothing is limited or blocked either: an attack must be able to show that it works."""
        container_id = new_id("ct")
        folder = self._base / "containers" / container_id
        folder.mkdir(mode=0o700)
        python = os.path.realpath(sys.executable)
        mounts = [
            Mount(source=str(self._base / "volumes"), target="/volume", read_only=False),
            Mount(source=str(self._base / "frozen"), target=str(self._base / "frozen")),
            Mount(source=str(self._base / "runner"), target="/opt/runner"),
            Mount(source=str(self._base / "run"), target="/run/server"),
        ]
        if not Path(sys.base_prefix).is_relative_to("/usr"):
            mounts.append(Mount(source=sys.base_prefix, target=sys.base_prefix))
        return SandboxSpec(
            container_id=container_id,
            argv=(python, "-I", "-S", "-u", "-c", *arguments),
            env=(("PATH", "/usr/bin:/bin"), *((("SECRET", secret),) if secret else ())),
            folder=str(folder),
            mounts=tuple(mounts) if self._isolated else (),
            memory_limit=MEBIBYTES if self._isolated else None,
            pids_limit=PIDS if self._isolated else None,
            block_network=block_network and self._isolated,
        )


async def read_line(fd: int) -> str:
    """One line, or what there was of it when the last writer ended."""
    loop = asyncio.get_running_loop()
    data = b""
    while not data.endswith(b"\n"):
        ready = asyncio.Event()
        loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)
        piece = os.read(fd, 1)
        if not piece:
            break
        data += piece
    return data.decode(errors="replace")


def end_marked(mark: str) -> bool:
    """Kills what still runs with `mark` among its arguments. Whether there was anything."""
    found = False
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(process.name) != os.getpid() and mark.encode() in (process / "cmdline").read_bytes():
                found = True
                os.kill(int(process.name), signal.SIGKILL)
    return found
