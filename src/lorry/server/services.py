"""What the fleet is built on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from lorry.clock import Clock
from lorry.sandbox.interface import Sandbox, SandboxSpec
from lorry.server.container import Container
from lorry.server.logs import LogStore
from lorry.server.switch import Switch
from lorry.server.templates import Templates
from lorry.store.interface import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    clock: Clock
    store: Store
    switch: Switch
    logs: LogStore
    sandbox: Sandbox
    folder: Path
    """Parent of the containers' own folders."""
    notes: Path
    """Of containers whose row is not committed; see `note`."""
    templates: Templates
    prepare: Callable[[Container], Awaitable[SandboxSpec]]
    """Everything a container needs brought to this machine, and its sandbox described."""
    machine_mib: int
    """Memory of this machine: `memory_backoff` ends there."""
    hidden: Callable[[Container], tuple[str, ...]]
    """Values that must not appear in the output of a container which an earlier worker started."""
