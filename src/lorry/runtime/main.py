"""The program of a container: connect, import the user's code, run `enter`, serve inputs, run `exit`.

Run as `python -P main.py` with LORRY_* in its environment. Needs only the standard library and the folder that
this package lies in, whatever the image holds; that folder comes last on the path, so the user's packages win.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorry.runtime.link import Link
    from lorry.runtime.load import Loaded
    from lorry.wire.identity import ContainerIdentity


def _find_ourselves() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    library = os.path.dirname(os.path.dirname(here))
    if library not in sys.path:
        sys.path.append(library)


def main() -> int:
    from lorry.wire import identity

    me = identity.container = identity.ContainerIdentity(
        os.environ["LORRY_SOCKET"],
        os.environ["LORRY_CONTAINER_ID"],
        os.environ.pop("LORRY_TOKEN"),
        os.environ["LORRY_APP_ID"],
        os.environ.get("LORRY_SOURCE", ""),
    )
    if os.environ.pop("LORRY_TEMPLATE", "") != "1":
        return run_container(me, None)
    from lorry.runtime import template

    fork = template.run(me)
    return 0 if fork is None else run_container(fork.identity, fork.loaded)


def run_container(me: ContainerIdentity, loaded: Loaded | None) -> int:
    """`loaded`: in a fork, what its template has imported, with its `snap` hooks done."""
    from lorry.model.function import FunctionSpec
    from lorry.runtime import async_runner, output
    from lorry.runtime.failure import failure_text
    from lorry.runtime.import_times import ImportTimes
    from lorry.runtime.link import Link, on_nudge
    from lorry.runtime.load import load
    from lorry.runtime.sync_runner import SyncRunner
    from lorry.wire.codec import from_plain

    runner: SyncRunner | async_runner.AsyncRunner | None = None
    link = Link(me.socket_path, me.container_id, me.token, lambda: runner.running() if runner else [])
    hello = link.connect()
    spec = from_plain(FunctionSpec, hello["spec"])
    output.install(concurrent=spec.max_concurrent > 1)
    on_nudge(lambda: stay_connected(link))
    times = ImportTimes()
    began = imported = time.monotonic()
    try:
        if loaded is None:
            sys.path.insert(0, me.source or os.getcwd())
            with times:
                loaded = load(spec, me.source)
            loaded.enters[:0] = loaded.snaps
        imported = time.monotonic()
        asynchronous = async_runner.needed(spec, loaded)
        runner = async_runner.AsyncRunner(link, loaded, spec) if asynchronous else SyncRunner(link, loaded, spec)
        _call_hooks(runner, loaded.enters)
    except BaseException as problem:
        on_nudge(lambda: None)
        output.flush()
        link.request("boot_failed", {"failure": failure_text(problem)})
        return 1
    on_nudge(runner.nudged)
    output.flush()
    stages = {"import": imported - began, "enter": time.monotonic() - imported, "imports": times.slowest()}
    link.request("ready", stages)
    link.booted = True
    runner.serve()
    runner_exit(runner, loaded)
    output.flush()
    return 0


def stay_connected(link: Link) -> None:
    """A new server asks who is there, while the user's code is still being imported. It hears that at once: an import
    may take longer than a server waits. Frames are left for the runner."""
    try:
        lost = not link.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    except OSError:
        lost = True
    if lost:
        link.connect()


def runner_exit(runner: object, loaded: object) -> None:
    """Every exit hook runs, even when one fails; failures are only printed: no input is left to report them to."""
    import traceback

    for hook in loaded.exits:  # type: ignore[attr-defined]
        try:
            _call_hooks(runner, [hook])
        except BaseException:
            traceback.print_exc()


def _call_hooks(runner: object, hooks: Sequence[object]) -> None:
    import inspect

    for hook in hooks:
        value = hook()  # type: ignore[operator]
        if inspect.isawaitable(value):
            runner.loop.run_until_complete(value)  # type: ignore[attr-defined]


if __name__ == "__main__":
    _find_ourselves()
    sys.exit(main())
