"""The ground on which attacks are run: a throw-away folder with canaries in it, a stand-in for the server, and a
neighbour in a container of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorry.errors import Error
from lorry.ids import new_id
from lorry.sandbox.fork import POOL
from lorry.sandbox.interface import Feature, Mount, Sandbox, SandboxProcess, SandboxSpec
from lorry.sandbox.records import open_outputs, prepare_folder
from lorry.security.attacks import ATTACKS, FORKING, HERE, PROGRAMS, SUCCEEDED, Attack, Verdict

MEBIBYTES, PIDS = 64, 16
"""The limits that bombs try to pass; the interpreter alone takes some 10 MiB."""
BEGINS, SILENT = "begins", "cannot: it did not begin"
PATIENCE = 30.0
"""Seconds for one attack. Each takes a fraction of one; a program that hangs has not succeeded."""
VICTIM = Path(__file__).parent / "victim.py"
LIBRARY = Path(__file__).parents[1]
FORKS = "import sys; sys.path.append('/opt/library'); from lorry.security.forks import main; main(*sys.argv[1:5])"
OPTIONS = ("-I", "-S", "-u", "-c")
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
        self._canaries = {name: canary() for name in ("database", "foreign", "home", "server", "neighbour", "sibling")}
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
        self._paths["interpreter"] = self._copy_interpreter()
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
        if attack.target == "sibling" and self._sandbox.name in FORKING:
            return await self._attack_of_a_fork(attack)
        neighbour = await self._start_neighbour(attack) if attack.target in ("neighbour", "sibling") else None
        mark = new_id("ct")
        facts = self._facts(attack, neighbour.pid if neighbour else 0) | {"run": mark}
        with self._interpreter(attack) as python:
            process = await self._sandbox.start(self._spec_of(attack, facts, python))
        line = await read_word(process.outputs[0])
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

    async def _start_neighbour(self, attack: Attack) -> SandboxProcess:
        argv = (os.path.realpath(sys.executable), *OPTIONS, PAUSE, self._mark)
        neighbour = await self._sandbox.start(self._spec(argv, secret=self._canaries[attack.target]))
        await read_line(neighbour.outputs[0])
        return neighbour

    async def _attack_of_a_fork(self, attack: Attack) -> str:
        """The template, the victim and the attacker have one command line, with the mark in it."""
        victim, attacker = self._fork_folder(), self._fork_folder()
        (victim / "home/secret").write_text(self._canaries["sibling"])
        (victim / "home/secret").chmod(0o644)
        words = (FORKS, victim.name, attacker.name, code_of(attack), json.dumps(self._facts(attack, 0)))
        spec = self._spec((os.path.realpath(sys.executable), *OPTIONS, *words))
        pool = Mount(source=str(self._base / "containers"), target=POOL, read_only=False)
        library = Mount(source=str(LIBRARY), target="/opt/library/lorry")
        outputs = open_outputs(str(attacker))
        process = await self._sandbox.start(
            dataclasses.replace(spec, template=True, mounts=(*spec.mounts, pool, library))
        )
        line = await read_word(outputs[0])
        process.kill()
        await process.wait()
        process.close()
        for fd in outputs:
            os.close(fd)
        return line

    def _fork_folder(self) -> Path:
        folder = self._base / "containers" / new_id("ct")
        folder.mkdir(mode=0o711)
        prepare_folder(str(folder), self._owner)
        return folder

    @contextlib.contextmanager
    def _interpreter(self, attack: Attack) -> Iterator[str]:
        """What starts the sandbox, and runs the program in it: where that is the target, a copy that may be spoilt."""
        own = sys.executable
        if attack.target == "interpreter":
            sys.executable = str(self._paths["interpreter"])
        try:
            yield os.path.realpath(sys.executable)
        finally:
            sys.executable = own

    def _copy_interpreter(self) -> Path:
        """One that finds the standard library of the first."""
        real = Path(os.path.realpath(sys.executable))
        copy = self._base / "interpreter/bin/python"
        copy.parent.mkdir(parents=True)
        shutil.copy(real, copy)
        (self._base / "interpreter/pyvenv.cfg").write_text(f"home = {real.parent}\n")
        return copy

    def _facts(self, attack: Attack, pid: int) -> dict[str, Any]:
        of_database = attack.program == "server_descriptor"
        secret = self._canaries.get("database" if of_database else attack.target, "")
        return {
            "path": str(self._paths.get(attack.target, "")),
            "digest": hashlib.sha256(secret.encode()).hexdigest(),
            "volume": "/volume" if self._isolated else str(self._base / "volumes"),
            "runner": "/opt/runner/main.py" if self._isolated else str(self._base / "runner/main.py"),
            "socket": "/run/server/socket" if self._isolated else str(self._base / "run/socket"),
            "port": self._port,
            "interpreter": [self._paths["interpreter"].stat().st_dev, self._paths["interpreter"].stat().st_ino],
            "abstract": self._abstract,
            "mark": self._mark,
            "pid": pid,
            "pids": PIDS,
            "mebibytes": MEBIBYTES,
        }

    def _spec_of(self, attack: Attack, facts: Mapping[str, Any], python: str) -> SandboxSpec:
        code = code_of(attack)
        argv: tuple[str, ...] = (python, *OPTIONS, code, json.dumps(facts))
        if attack.script:
            script = self._base / "volumes/script"
            script.write_text(f"#!/proc/self/exe\n{code}")
            script.chmod(0o755)
            argv = (f"{facts['volume']}/script", json.dumps(facts))
        return self._spec(argv, block_network=attack.block_network)

    def _spec(self, argv: tuple[str, ...], *, secret: str = "", block_network: bool = False) -> SandboxSpec:
        """Without isolation nothing is limited or blocked either: an attack must be able to show that it works."""
        container_id = new_id("ct")
        folder = self._base / "containers" / container_id
        folder.mkdir(mode=0o700)
        mounts = [
            Mount(source=str(self._base / "volumes"), target="/volume", read_only=False),
            Mount(source=str(self._base / "frozen"), target=str(self._base / "frozen")),
            Mount(source=str(self._base / "runner"), target="/opt/runner"),
            Mount(source=str(self._base / "run"), target="/run/server"),
            Mount(source=str(self._base / "interpreter"), target=str(self._base / "interpreter")),
        ]
        if not Path(sys.base_prefix).is_relative_to("/usr"):
            mounts.append(Mount(source=sys.base_prefix, target=sys.base_prefix))
        return SandboxSpec(
            container_id=container_id,
            argv=argv,
            env=(("PATH", "/usr/bin:/bin"), *((("SECRET", secret),) if secret else ())),
            folder=str(folder),
            mounts=tuple(mounts) if self._isolated else (),
            memory_limit=MEBIBYTES if self._isolated else None,
            pids_limit=PIDS if self._isolated else None,
            block_network=block_network and self._isolated,
        )


def code_of(attack: Attack) -> str:
    """It says that it begins: who never did has not failed."""
    return f"print({BEGINS!r}, flush=True)\n" + (PROGRAMS / f"{attack.program}.py").read_text()


async def read_word(fd: int) -> str:
    """An attack's word of itself; empty if it has none within its time."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await read_line(fd) if await read_line(fd) == f"{BEGINS}\n" else SILENT
    except TimeoutError:
        return ""


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
