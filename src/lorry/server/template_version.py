"""What a template is made for: the version of a function, its sandbox, and what a fork of it is told. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from lorry.model.function import FunctionSpec
from lorry.sandbox.fork import POOL
from lorry.sandbox.interface import Mount, SandboxSpec
from lorry.sandbox.rootfs import HOME, TMP, VAR_TMP
from lorry.server.folders import POOL_NAME
from lorry.wire.codec import to_plain

PER_CONTAINER = ("LORRY_CONTAINER_ID", "LORRY_TOKEN", "LORRY_APP_ID", "CUDA_VISIBLE_DEVICES")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def digest(described: SandboxSpec, spec: FunctionSpec) -> str:
    """Of everything that the import can see. Secrets are part of the environment, and so of this."""
    plain = [
        described.argv,
        sorted((name, value) for name, value in described.env if name not in PER_CONTAINER),
        [(mount.source, mount.target, mount.read_only) for mount in described.mounts],
        to_plain(described.root),
        [described.cwd, described.block_network, described.memory_limit, described.cpu_limit, described.pids_limit],
        to_plain(spec.code),
        [spec.kind, spec.parameters],
    ]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def template_sandbox(described: SandboxSpec, template_id: str, token: str, folder: Path) -> SandboxSpec:
    """The sandbox of a container, without what is the container's own: one thread, no device, and a pool."""
    env = dict(described.env) | dict.fromkeys(THREADS, "1")
    env |= {"LORRY_TEMPLATE": "1", "LORRY_CONTAINER_ID": template_id, "LORRY_TOKEN": token, "CUDA_VISIBLE_DEVICES": ""}
    pool = Mount(source=str(folder / POOL_NAME), target=POOL, read_only=False)
    return dataclasses.replace(
        described,
        container_id=template_id,
        env=tuple(sorted(env.items())),
        folder=str(folder),
        mounts=(*described.mounts, pool),
        gpus=(),
        template=True,
    )


def fork_request(
    described: SandboxSpec, template: SandboxSpec, rlimits: list[tuple[int, int]], machine_mib: int
) -> dict[str, Any]:
    """What the template needs to know of one container."""
    given, wanted = dict(template.env), dict(described.env)
    return {
        "container_id": described.container_id,
        "keep": kept_mounts(described),
        "shm_mib": described.memory_limit or max(64, machine_mib // 2),
        "rlimits": rlimits,
        "cwd": described.cwd,
        "env": {name: value for name, value in wanted.items() if given.get(name) != value},
        "threads": _threads(wanted.get("OMP_NUM_THREADS", "")),
    }


def kept_mounts(described: SandboxSpec) -> list[str]:
    """What lies mounted below the folders that each container has for itself, the outermost only."""
    own = [f"{folder}/" for folder in (HOME, TMP, VAR_TMP)]
    targets = sorted(mount.target for mount in described.mounts if mount.target.startswith(tuple(own)))
    kept: list[str] = []
    for target in targets:
        if not kept or not target.startswith(f"{kept[-1]}/"):
            kept.append(target)
    return kept


def with_token(described: SandboxSpec, token: str) -> SandboxSpec:
    env = dict(described.env) | {"LORRY_TOKEN": token}
    return dataclasses.replace(described, env=tuple(env.items()))


def _threads(setting: str) -> int:
    """The user's own may be a list by level, "4,2"."""
    first = setting.partition(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1
