"""A template: a process that has imported the user's module and forks a container of it whenever the server asks.

It runs in the function's sandbox, with one thread, and never answers an input itself. A fork is safe only if nothing
here has threads, sockets or a CUDA context, so that is checked before the server hears that it is ready; what is not
safe ends, and its containers start cold. When the server is gone it ends too: its containers go on without it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorry.model.function import FunctionSpec
from lorry.runtime import output
from lorry.runtime.fork_safety import after_fork, first_computations, open_files, thread_setters, unsafe
from lorry.runtime.huge_pages import candidates, collapse
from lorry.runtime.import_times import ImportTimes
from lorry.runtime.link import Link
from lorry.runtime.load import Loaded, is_async_callable, load
from lorry.sandbox.fork import POOL, ForkConfig, become_container, last_step
from lorry.wire import identity
from lorry.wire.codec import from_plain
from lorry.wire.control import encode
from lorry.wire.frames import HEADER_SIZE, MAX_FRAME, Kind
from lorry.wire.identity import ContainerIdentity

WANTED = (
    "lorry.runtime.async_runner",
    "lorry.runtime.sync_runner",
    "lorry.runtime.failure",
    "lorry._vendor.cloudpickle",
)
"""What each fork would import first: 20 ms."""
QUIET = 20
"""Milliseconds without a request: then huge pages are made, until there is one."""
MOST_GROUPS = 8
_ANCILLARY = socket.CMSG_SPACE(4 * MOST_GROUPS)
EXIT_NO_CONTAINER = 70
"""EX_SOFTWARE of sysexits.h: a fork could not become a container."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Given to the forked process alone."""

    identity: ContainerIdentity
    loaded: Loaded


def run(me: ContainerIdentity) -> Fork | None:
    """Import, then fork at each request. Returns in each fork, and None in the template itself when it is over."""
    link = Link(me.socket_path, me.container_id, me.token, list, role="template")
    spec = from_plain(FunctionSpec, link.connect()["spec"])
    sys.path.insert(0, me.source or os.getcwd())
    output.install(concurrent=False)
    before = open_files()
    began = time.monotonic()
    try:
        with ImportTimes() as times:
            loaded = load(spec, me.source)
        imported = time.monotonic()
        _prepare(loaded)
    except BaseException as problem:
        link.request("template_failed", {"reason": f"its import raised {type(problem).__name__}"})
        return None
    entered = time.monotonic()
    setters = thread_setters()
    first_computations(setters)
    if reason := unsafe(before):
        link.request("template_failed", {"reason": reason})
        return None
    for module in WANTED:
        importlib.import_module(module)
    output.flush()
    gc.collect()
    gc.freeze()
    stages = {"import": imported - began, "enter": entered - imported, "imports": times.slowest()}
    link.request("template_ready", stages)
    return _Forks(link, me, loaded, setters).serve()


def _prepare(loaded: Loaded) -> None:
    """The hooks that may run here. One that needs a loop runs in each container instead."""
    if any(map(is_async_callable, loaded.snaps)):
        loaded.enters[:0] = loaded.snaps
        return
    for hook in loaded.snaps:
        hook()


class _Forks:
    def __init__(self, link: Link, me: ContainerIdentity, loaded: Loaded, setters: list[Callable[[int], Any]]) -> None:
        self._link = link
        self._me = me
        self._loaded = loaded
        self._setters = setters
        self._children: dict[int, tuple[int, str]] = {}
        """By pidfd: pid and container id."""
        self._poll = select.poll()

    def serve(self) -> Fork | None:
        sock = self._link.sock
        self._poll.register(sock, select.POLLIN)
        pages, quiet = list(candidates()), QUIET
        while True:
            # Not while a fork lives: what both have would be copied for it, and not be shared any more.
            events = self._poll.poll(quiet if pages and not self._children else None)
            quiet = QUIET if events else 0
            if not events:
                collapse(pages.pop())
            for fd, _event in events:
                if fd != sock.fileno():
                    self._reap(fd)
                    continue
                data, ancillary, _flags, _address = sock.recvmsg(MAX_FRAME, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    return None
                if data[0] == Kind.ATTACHED:
                    continue
                fork = self._fork(json.loads(data[HEADER_SIZE:])["params"], _descriptors(ancillary))
                if fork is not None:
                    return fork

    def _fork(self, request: dict[str, Any], groups: list[int]) -> Fork | None:
        output.flush()
        try:
            pid = os.fork()
        except OSError as problem:  # no memory or no process to be had at this moment
            pid = -1
            self._tell_ended(request["container_id"], f"forking: {problem!r}")
        if pid == 0:
            return self._child(request, groups)
        for fd in groups:
            os.close(fd)
        if pid < 0:
            return None
        handle = os.pidfd_open(pid)
        self._children[handle] = (pid, request["container_id"])
        self._poll.register(handle, select.POLLIN)
        return None

    def _child(self, request: dict[str, Any], groups: list[int]) -> Fork:
        try:
            for fd in self._children:
                os.close(fd)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            become_container(
                ForkConfig(
                    container_id=request["container_id"],
                    keep=tuple(request["keep"]),
                    shm_mib=request["shm_mib"],
                    rlimits=tuple((which, limit) for which, limit in request["rlimits"]),
                    cwd=request["cwd"],
                ),
                groups,
            )
            environment = request["env"]
            token = environment.pop("LORRY_TOKEN")
            os.environ.update(environment)
            after_fork(self._setters, request["threads"])
        except BaseException as problem:
            os.write(2, f"{last_step()}: {problem!r}\n".encode())  # its own stderr: the server reads it
            os._exit(EXIT_NO_CONTAINER)
        me = identity.container = ContainerIdentity(
            self._me.socket_path, request["container_id"], token, os.environ["LORRY_APP_ID"], self._me.source
        )
        return Fork(me, self._loaded)

    def _reap(self, handle: int) -> None:
        """The record that the launcher's first process writes for others."""
        pid, container_id = self._children.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        _, status, used = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        record = f"{code} {used.ru_maxrss} {used.ru_utime + used.ru_stime:.3f}\n"
        try:
            with open(f"{POOL}/{container_id}/exit", "w") as file:
                file.write(record)
        except OSError:
            return  # its folder is gone: nobody asks any more
        finally:
            self._tell_ended(container_id, f"it ended with code {code}" if code >= 0 else f"signal {-code} ended it")

    def _tell_ended(self, container_id: str, reason: str) -> None:
        told = {"container_id": container_id, "reason": reason}
        for frame in encode(Kind.REQUEST, 0, {"method": "fork_ended", "params": told}):
            self._link.sock.send(frame)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    import array

    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
