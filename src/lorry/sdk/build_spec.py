"""From decorators to FunctionSpecs: what an app sends when it starts."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lorry.errors import InvalidError
from lorry.model.function import NAMED_SECRET, CodeRef, FunctionKind, FunctionSpec, VolumeMount
from lorry.model.image import ImageSpec
from lorry.sdk import options as opt
from lorry.sdk.function import is_generator_function
from lorry.sdk.option_checks import mount_path
from lorry.sdk.resumable import resume_policy
from lorry.sdk.secret import Secret
from lorry.sdk.source import file_of, relative_entry
from lorry.sdk.steps import Steps
from lorry.sdk.volume import Volume
from lorry.wire import pickling

MAIN_ALIAS = "__mp_main__"


class Files:
    """Digests of local files, remembered so that those the server lacks can be sent."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}

    def digest(self, path: Path) -> str:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.paths[digest] = path
        return digest


def secret_ids(secrets: Sequence[Secret]) -> Steps[tuple[str, ...]]:
    """Ids in order; a missing secret is NotFoundError."""
    found = []
    for secret in secrets:
        secret_id = yield from secret._hydrated(afresh=True)
        found.append(secret_id if secret.name is None else NAMED_SECRET + secret.name)
    return tuple(found)


def volume_mounts(volumes: Mapping[str, Volume]) -> Steps[tuple[VolumeMount, ...]]:
    mounts = []
    for path, volume in sorted((mount_path(path), volume) for path, volume in volumes.items()):
        volume_id = yield from volume._hydrated(afresh=True)
        mounts.append(VolumeMount(path=path, volume_id=volume_id, read_only=volume.is_read_only))
    return tuple(mounts)


def code_ref(raw: Any, qualname: str, serialized: bool) -> CodeRef:
    """How the container finds it: by module and name, or as bytes when there is no file to ship."""
    module: ModuleType | None = sys.modules.get(raw.__module__)
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    importable = module is not None and file_of(module) and "<" not in qualname
    if serialized or not importable:
        if not serialized and file_of(module):
            raise InvalidError(
                f"{qualname} is defined inside another function: move it to the top of its file, or use serialized=True"
            )
        data = base64.b64encode(pickling.dump_function(raw)).decode()
        return CodeRef(module=raw.__module__, qualname=qualname, serialized=data, python=minor)
    assert module is not None
    if raw.__module__ == "__main__":
        specification = getattr(module, "__spec__", None)
        if specification is not None:  # python -m pkg.mod
            return CodeRef(module=specification.name, qualname=qualname)
        return CodeRef(module=MAIN_ALIAS, qualname=qualname, entry=relative_entry(module))
    return CodeRef(module=raw.__module__, qualname=qualname)


def function_spec(
    *,
    tag: str,
    kind: FunctionKind,
    raw: Any,
    given: dict[str, Any],
    marks: dict[str, Any],
    methods: Mapping[str, Callable[..., Any]],
    image: ImageSpec,
    mounts: tuple[VolumeMount, ...],
    secrets: tuple[str, ...],
    source: str,
) -> FunctionSpec:
    """One function or class, everything resolved."""
    concurrent = marks.get("concurrent", {})
    timeout = opt.seconds(given.get("timeout", 300), "timeout")
    startup = given.get("startup_timeout")
    return FunctionSpec(
        tag=tag,
        kind=kind,
        code=code_ref(raw, raw.__qualname__, bool(given.get("serialized"))),
        image=image,
        source=source,
        resources=opt.resources(given),
        scaling=opt.scaling(given),
        retries=opt.retry_policy(given.get("retries")),
        timeout=timeout,
        startup_timeout=None if startup is None else opt.seconds(startup, "startup_timeout"),
        max_concurrent=concurrent.get("max_inputs", 1),
        target_concurrent=concurrent.get("target_inputs"),
        volumes=mounts,
        secret_ids=secrets,
        env=tuple(sorted(given.get("env", {}).items())),
        block_network=bool(given.get("block_network")),
        single_use=bool(given.get("single_use_containers")),
        max_inputs=given.get("max_inputs"),
        restrict_access=bool(given.get("restrict_modal_access") or given.get("restrict_access")),
        is_generator=bool(given.get("is_generator")) or (not methods and is_generator_function(raw)),
        methods=tuple(methods),
        generator_methods=tuple(name for name, method in methods.items() if is_generator_function(method)),
        tags=tuple(sorted((given.get("tags") or {}).items())),
        priority=int(given.get("priority") or 0),
        resumable=resume_policy(given.get("resumable")),
    )
