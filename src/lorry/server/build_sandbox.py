"""Image builds run where containers run: in a sandbox, under the unprivileged uid, with the paths that they need.

A source distribution runs its own code while it is built. As root's child it could do anything; here it sees the
build's folder, the interpreter, the indexes, and the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lorry.errors import ImageBuildError, InvalidError
from lorry.ids import new_id
from lorry.images.runner import LineSplitter, RootCommand
from lorry.sandbox.build_ids import no_ids
from lorry.sandbox.interface import Feature, Mount, RootLayers, Sandbox, SandboxProcess, SandboxSpec

READ_SIZE = 16 * 1024
REST = 1.0
"""Times what the lines took, before more are read: a build that prints without end slows down itself alone."""
ROOTS_CACHE = "roots"
"""Folder that builds in images' own roots share."""
PROCESS = "process"
"""File of a build's folder: pid and start of its sandbox, for a worker that comes after this one."""


class SandboxedBuilds:
    """A BuildRunner (lorry.images.runner) on a sandbox tier that can mount."""

    def __init__(self, sandbox: Sandbox, folder: Path, owner: tuple[int, int] | None) -> None:
        """`folder`: parent of the builds' own folders. `owner`: who writes in the sandbox, if not this user."""
        self._sandbox = sandbox
        self._folder = folder
        self._owner = owner
        if folder.is_dir():
            for leftover in folder.iterdir():
                self._end(leftover)

    async def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        writable: Sequence[str],
        readable: Sequence[str],
        on_line: Callable[[str], None],
    ) -> int:
        """See BuildRunner.run."""
        return await self._enclosed(
            lambda build_id, folder: self._spec(build_id, folder, argv, env, writable, readable), on_line
        )

    def no_roots(self) -> str:
        """See RootRunner.no_roots."""
        if problems := self._sandbox.missing([Feature.LAYERS]):
            return problems[0]
        return no_ids(self._owner[0] if self._owner else None)

    async def own(self, path: str) -> None:
        """See RootRunner.own."""
        if self._owner is not None:
            os.chown(path, *self._owner)

    async def run_in_root(self, command: RootCommand, on_line: Callable[[str], None]) -> int:
        """See RootRunner.run_in_root."""
        for path, _ in command.writable:
            if Path(path).name == ROOTS_CACHE:
                self._hand_over(path)
        try:
            return await self._enclosed(lambda build_id, folder: _root_spec(build_id, folder, command), on_line)
        except InvalidError as error:  # a program or working directory that the image does not have
            raise ImageBuildError(f"the build's sandbox could not be started: {error}") from None

    async def _enclosed(self, spec: Callable[[str, Path], SandboxSpec], on_line: Callable[[str], None]) -> int:
        build_id = new_id("bu")
        folder = self._folder / build_id
        folder.mkdir(mode=0o700, parents=True)
        try:
            process = await self._sandbox.start(spec(build_id, folder))
            try:
                (folder / PROCESS).write_text(f"{process.pid} {process.pid_started}")
                ended, _ = await asyncio.gather(process.wait(), _pass_on(process, LineSplitter(on_line)))
            except BaseException:
                process.kill()
                await asyncio.shield(process.wait())
                raise
            finally:
                process.close()
            return -ended.signal if ended.signal is not None else ended.code
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _end(self, leftover: Path) -> None:
        """A build of a worker that died: nobody waits for it, and it would go on, for ever if it hangs."""
        with contextlib.suppress(OSError, ValueError):  # no such file: the worker died while it started it
            pid, started = map(int, (leftover / PROCESS).read_text().split())
            process = self._sandbox.adopt(leftover.name, str(leftover), pid, started)
            if process is not None:
                process.kill()
                process.close()
        shutil.rmtree(leftover, ignore_errors=True)

    def _spec(
        self,
        build_id: str,
        folder: Path,
        argv: Sequence[str],
        env: Mapping[str, str],
        writable: Sequence[str],
        readable: Sequence[str],
    ) -> SandboxSpec:
        for path in writable:
            self._hand_over(path)
        mounts = [Mount(source=path, target=path) for path in _outermost(readable)]
        mounts += [Mount(source=path, target=path, read_only=False) for path in writable]
        return SandboxSpec(
            container_id=build_id,
            argv=tuple(argv),
            env=tuple(sorted({"HOME": "/root", **env}.items())),
            folder=str(folder),
            mounts=tuple(mounts),
            cwd=writable[0] if writable else "/",
        )

    def _hand_over(self, path: str) -> None:
        """The folder belongs to the uid that builds, with what another tier built in it before."""
        if self._owner is None or os.stat(path).st_uid == self._owner[0]:
            return
        for folder, folders, files in os.walk(path):
            for name in ("", *folders, *files):
                os.chown(os.path.join(folder, name), *self._owner, follow_symlinks=False)


def _root_spec(build_id: str, folder: Path, command: RootCommand) -> SandboxSpec:
    mounts = [Mount(source=source, target=target) for source, target in command.readable]
    mounts += [Mount(source=source, target=target, read_only=False) for source, target in command.writable]
    upper, work = command.upper, command.work
    if command.lower and not upper:  # nothing is kept
        upper, work = str(folder / "upper"), str(folder / "work")
        for path in (upper, work):
            os.mkdir(path)
    return SandboxSpec(
        container_id=build_id,
        argv=command.argv,
        env=tuple(sorted({"HOME": "/root", **command.env}.items())),
        folder=str(folder),
        mounts=tuple(mount for mount in mounts if command.lower or not Path(mount.target).is_relative_to("/usr")),
        cwd=command.cwd,
        root=RootLayers(lower=command.lower, upper=upper, work=work) if command.lower else None,
        build=True,
    )


def _outermost(paths: Sequence[str]) -> list[str]:
    """Existing paths that not every sandbox has anyway (/usr, certificates); none inside another one."""
    found: list[str] = []
    for path in sorted({os.path.realpath(path) for path in paths} | set(paths)):
        inside = any(Path(path).is_relative_to(other) for other in (*found, "/usr", "/etc"))
        if os.path.exists(path) and not inside:
            found.append(path)
    return found


async def _pass_on(process: SandboxProcess, splitter: LineSplitter) -> None:
    """Lines of both outputs, until every process of the build has closed them."""
    loop = asyncio.get_running_loop()
    left = set(process.outputs)
    resting: dict[int, asyncio.TimerHandle] = {}
    done = loop.create_future()

    def readable(fd: int) -> None:
        started = time.monotonic()
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return
        loop.remove_reader(fd)
        if data:
            splitter.feed(data)
            rest = REST * (time.monotonic() - started)
            resting[fd] = loop.call_later(rest, loop.add_reader, fd, readable, fd)
            return
        left.discard(fd)
        if not left and not done.done():
            done.set_result(None)

    for fd in process.outputs:
        loop.add_reader(fd, readable, fd)
    try:
        await done
    finally:
        for fd in left:
            loop.remove_reader(fd)
        for handle in resting.values():
            handle.cancel()
        splitter.close()
