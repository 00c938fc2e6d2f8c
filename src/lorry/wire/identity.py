"""Who this process is, when it runs inside a container; set by the runner before user code is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ContainerIdentity:
    socket_path: str
    container_id: str
    token: str
    app_id: str
    source: str


container: ContainerIdentity | None = None
