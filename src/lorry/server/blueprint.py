"""From a function's spec to the sandbox it runs in: program, environment, mounts, limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lorry
from lorry.config import Settings
from lorry.images.builder import BuiltImage
from lorry.model.function import FunctionSpec
from lorry.sandbox.interface import Mount, RootLayers, SandboxSpec
from lorry.scheduler.inventory import Reservation
from lorry.server import run_files

PACKAGE = Path(lorry.__file__).parent
INNER_LIBRARY = "/opt/lorry"
INNER_SOCKET = "/run/lorry/s"
HOME = "/root"
MOST_PIDS = 32_768
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """What a container is made of, already present on this machine."""

    container_id: str
    app_id: str
    app_name: str
    token: str
    spec: FunctionSpec
    image: BuiltImage
    source: Path
    """The materialised snapshot of the user's files."""
    files: Path | None
    """The materialised files of the image, by absolute path."""
    volumes: Sequence[tuple[str, Path, bool]]
    """(path in the container, folder, read-only)."""
    secrets: Mapping[str, str]
    folder: Path
    cache: Path
    """Home's .cache, kept for all containers of the app's name: model weights are downloaded once."""
    runs: Path | None = None
    """Of a resumable function: the folder with its runs."""
    reservation: Reservation
    cores: float


def sandbox_spec(parts: Ingredients, settings: Settings, library: Path, isolated: bool) -> SandboxSpec:
    """`isolated`: the tier mounts, so everything is at its own path; otherwise host paths are used as they are."""
    spec = parts.spec
    main = f"{INNER_LIBRARY}/lorry" if isolated else str(library / "lorry")
    return SandboxSpec(
        container_id=parts.container_id,
        argv=spec.command or (parts.image.python, "-P", f"{main}/runtime/main.py"),
        env=tuple(sorted(environment(parts, settings, isolated).items())),
        folder=str(parts.folder),
        mounts=tuple(_mounts(parts, settings)) if isolated else _demanded(parts),
        cwd=spec.image.workdir or parts.image.workdir or (HOME if isolated else _host_folder(parts)),
        memory_limit=spec.resources.memory_limit,
        pids_limit=pids_limit() if isolated else None,
        cpu_shares=spec.resources.cpu,
        cpu_limit=spec.resources.cpu_limit,
        gpus=parts.reservation.gpu_indices,
        block_network=spec.block_network,
        root=RootLayers(lower=parts.image.layers) if parts.image.layers else None,
    )


def _host_folder(parts: Ingredients) -> str:
    """The working directory where nothing can be mounted. A sandbox must not write among the shared sources."""
    return f"{parts.folder}/home" if parts.spec.is_sandbox and not parts.spec.source else str(parts.source)


def environment(parts: Ingredients, settings: Settings, isolated: bool) -> dict[str, str]:
    """Everything the program finds in os.environ. The user's own values win over the platform's defaults."""
    threads = str(thread_count(parts.spec, parts.cores))
    values = {
        "PATH": _path(parts.image),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **dict.fromkeys(_THREAD_VARIABLES, threads),
    }
    if isolated:
        values.update(HOME=HOME, LORRY_PIDS_LIMIT=str(pids_limit()))
    elif parts.spec.code.module:  # its home is its own; libraries that download models look here
        values["XDG_CACHE_HOME"] = str(parts.cache)
    if parts.spec.resources.gpus:
        values["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, parts.reservation.gpu_indices))
    else:
        values["CUDA_VISIBLE_DEVICES"] = ""
    values.update({name: value for name, value in parts.image.env if name != "PATH"})
    values.update(dict(parts.spec.image.env))
    values.update(dict(parts.spec.env))
    values.update(parts.secrets)
    if parts.spec.is_sandbox:  # it may ask nothing of the server
        values.update(LORRY_CONTAINER_ID=parts.container_id, LORRY_APP_ID=parts.app_id)
        return values
    values.update(
        LORRY_CONTAINER_ID=parts.container_id,
        LORRY_APP_ID=parts.app_id,
        LORRY_TOKEN=parts.token,
        LORRY_SOCKET=INNER_SOCKET if isolated else str(settings.inner_socket),
        LORRY_SOURCE=HOME if isolated else str(parts.source),
    )
    return values


def _path(image: BuiltImage) -> str:
    """The image's own search path, behind the folder of its Python."""
    rest = dict(image.env).get("PATH") or "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return f"{Path(image.python).parent}:{rest}"


def pids_limit() -> int:
    """Processes and threads of one container: never more than a quarter of what the machine can number, so that a
    fork bomb leaves room for the others (proc(5), /proc/sys/kernel/pid_max)."""
    try:
        return min(MOST_PIDS, int(Path("/proc/sys/kernel/pid_max").read_text()) // 4)
    except (OSError, ValueError):
        return MOST_PIDS


def thread_count(spec: FunctionSpec, cores: float) -> int:
    """Threads for numeric libraries: the cpu limit, else the request if it is at least 1, else all cores."""
    resources = spec.resources
    if resources.cpu_limit is not None:
        return max(1, math.ceil(resources.cpu_limit))
    return max(1, math.floor(resources.cpu)) if resources.cpu >= 1 else max(1, int(cores))


def _mounts(parts: Ingredients, settings: Settings) -> list[Mount]:
    mounts = []
    if not parts.spec.is_sandbox:
        mounts.append(Mount(source=str(settings.inner_dir), target="/run/lorry"))
    if parts.spec.code.module:  # a program that nobody trusts gets no cache that functions read
        mounts += [
            Mount(source=str(PACKAGE), target=f"{INNER_LIBRARY}/lorry"),
            Mount(source=str(parts.cache), target=f"{HOME}/.cache", read_only=False),
        ]
    for prefix in (parts.image.base_prefix, parts.image.prefix):
        if prefix and not Path(prefix).is_relative_to("/usr"):
            mounts.append(Mount(source=prefix, target=prefix))
    mounts += [Mount(source=str(entry), target=f"{HOME}/{entry.name}") for entry in sorted(parts.source.iterdir())]
    if parts.runs is not None:
        mounts.append(Mount(source=str(parts.runs), target=run_files.INNER, read_only=False))
    if parts.files is not None:
        mounts += _file_mounts(parts.files, parts.spec)
    mounts += _demanded(parts)
    return mounts


def _demanded(parts: Ingredients) -> tuple[Mount, ...]:
    """What the user asked for by absolute path. A tier that cannot mount refuses the container for it."""
    return tuple(Mount(source=str(host), target=path, read_only=only) for path, host, only in parts.volumes)


def _file_mounts(tree: Path, spec: FunctionSpec) -> list[Mount]:
    """One mount per outermost folder or file that the image added."""
    tops = sorted({_top(file.path, spec) for file in spec.image.files})
    return [Mount(source=str(tree / top.lstrip("/")), target=top) for top in tops]


def _top(path: str, spec: FunctionSpec) -> str:
    """The highest folder above `path` that holds only files of this image: mounting it hides nothing else."""
    shared = {"/", HOME, "/tmp", "/opt", "/usr", "/etc", "/run", "/home", "/mnt", "/srv", "/var"}  # noqa: S108
    top = Path(path)
    while str(top.parent) not in shared:
        top = top.parent
    return str(top)
