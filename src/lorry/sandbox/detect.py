"""Which tier of isolation this machine gives, and what stands between it and the next one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lorry.errors import InvalidError, ResourceError
from lorry.sandbox import seccomp
from lorry.sandbox.bwrap import BwrapSandbox
from lorry.sandbox.interface import Sandbox
from lorry.sandbox.limits import Limits, find_limits
from lorry.sandbox.namespaces import NamespaceSandbox
from lorry.sandbox.process import ProcessSandbox

TIERS: dict[str, Callable[[Limits], Sandbox]] = {
    "namespaces": NamespaceSandbox,
    "bwrap": BwrapSandbox,
    "process": ProcessSandbox,
}
"""Strongest first."""

AUTO = "auto"
MACHINE = os.uname().machine
LINUX_ONLY = "namespaces are a feature of Linux: on this system, run the server in a Linux virtual machine"
OWN = "own file system, processes and network where asked"
GIVES = {
    "namespaces": OWN,
    "bwrap": f"{OWN}; containers are never forked from templates: all start cold",
    "process": "programs run as the server's own user, without isolation from its files or from each other",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    tier: str
    works: bool
    sentence: str
    """What it gives, or why it does not work and what to do."""


def choose(wanted: str | None = None, limits: Limits | None = None) -> Sandbox:
    """The tier of that name, or with None and "auto" the strongest that works. Blocking: it is really tried.

    Raises InvalidError for an unknown name, and ResourceError when the named tier does not work here: a
    weaker one is never taken in its place.
    """
    limits = limits or find_limits()
    if wanted in (None, AUTO):
        return next(sandbox for sandbox in _all(limits) if not _problems(sandbox))
    if wanted not in TIERS:
        raise InvalidError(f"no sandbox tier {wanted!r}: choose one of {', '.join((AUTO, *TIERS))}")
    sandbox = TIERS[wanted](limits)
    if problems := _problems(sandbox):
        raise ResourceError(f"the sandbox tier {wanted!r} does not work here: {'; '.join(problems)}")
    return sandbox


def report(limits: Limits | None = None) -> tuple[TierReport, ...]:
    """Every tier, strongest first, for `lorry doctor`."""
    limits = limits or find_limits()
    return tuple(_report(sandbox, limits) for sandbox in _all(limits))


def _report(sandbox: Sandbox, limits: Limits) -> TierReport:
    problems = _problems(sandbox)
    unfiltered = "" if seccomp.is_known() or sandbox.name == "process" else f"; no filter of system calls on {MACHINE}"
    sentence = "; ".join(problems) or f"{GIVES[sandbox.name]}; limits by {limits.name}{unfiltered}"
    return TierReport(tier=sandbox.name, works=not problems, sentence=sentence)


def _all(limits: Limits) -> Iterator[Sandbox]:
    return (make(limits) for make in TIERS.values())


def _problems(sandbox: Sandbox) -> tuple[str, ...]:
    if sandbox.name != "process" and sys.platform != "linux":
        return (LINUX_ONLY,)
    return sandbox.check()
