"""Landlock, for the one wall that forks of a template do not get from namespaces: they share that of processes, and a
user id, so that nothing else keeps one from signalling the others.

Standard library only: a fork of a template confines itself.
"""

from __future__ import annotations

import ctypes
import os

from lorry.sandbox.mounts import libc, must

CREATE_RULESET, RESTRICT_SELF = 444, 446
"""The same numbers on every architecture."""
ASK_VERSION, SCOPE_SIGNAL, SIGNALS_SINCE = 1, 2, 6


def scopes_signals() -> bool:
    """Linux 6.12 and later, where Landlock is not switched off."""
    return bool(libc.syscall(CREATE_RULESET, None, 0, ASK_VERSION) >= SIGNALS_SINCE)


def confine_signals() -> None:
    """For this process and all that it starts, for ever: signals reach no other. Before the first thread, and after
    `no_new_privs`. Nothing happens where the kernel cannot."""
    if not scopes_signals():
        return
    attributes = (ctypes.c_uint64 * 3)(0, 0, SCOPE_SIGNAL)  # no rules on files, none on the network
    rules = must(libc.syscall(CREATE_RULESET, attributes, ctypes.sizeof(attributes), 0))
    must(libc.syscall(RESTRICT_SELF, rules, 0))
    os.close(rules)
