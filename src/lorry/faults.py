"""Named points at which tests make a process die, stop or stall.

`LORRY_FAULT="point[:n[:action]]"`: at the n-th passage (default 1) of `point` do `action`: `kill` (default,
SIGKILL to itself), `stop` (SIGSTOP), `exit` (os._exit(70)). Several are separated by commas. With
`LORRY_FAULT_ONCE=FILE` each fires once per FILE, however often the process is restarted. Without the variable a
point costs one comparison.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator

_plan: dict[str, tuple[int, str]] = {}
_passages: dict[str, Iterator[int]] = {}

for _entry in filter(None, os.environ.get("LORRY_FAULT", "").split(",")):
    _point, _, _rest = _entry.partition(":")
    _count, _, _action = _rest.partition(":")
    _plan[_point] = (int(_count or 1), _action or "kill")

armed = bool(_plan)


def point(name: str) -> None:
    """A place where a crash matters. Call as `if faults.armed: faults.point("…")` on hot paths."""
    if name not in _plan:
        return
    count, action = _plan[name]
    passage = next(_passages.setdefault(name, itertools.count(1)))  # atomic: several threads may come by
    if passage == count and _first_time(name):
        _act(action)


def _first_time(name: str) -> bool:
    once = os.environ.get("LORRY_FAULT_ONCE")
    if once is None:
        return True
    try:
        os.close(os.open(f"{once}.{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def _act(action: str) -> None:
    if action == "exit":
        os._exit(70)
    os.kill(os.getpid(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)
