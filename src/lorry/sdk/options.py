"""The parameters of `@app.function` and `@app.cls`: checked, and turned into a FunctionSpec's parts.

Names and meanings are those of SDK.md. A parameter that this version does not act on yet gives one warning.
"""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lorry.errors import InvalidError
from lorry.model.function import Resources, RetryPolicy, Scaling
from lorry.model.gpu import parse_gpu
from lorry.sdk.retries import Retries

KNOWN = frozenset(
    [
        "image",
        "schedule",
        "env",
        "secrets",
        "gpu",
        "serialized",
        "volumes",
        "cpu",
        "memory",
        "ephemeral_disk",
        "min_containers",
        "max_containers",
        "buffer_containers",
        "scaledown_window",
        "retries",
        "timeout",
        "startup_timeout",
        "name",
        "is_generator",
        "region",
        "cloud",
        "nonpreemptible",
        "enable_memory_snapshot",
        "block_network",
        "single_use_containers",
        "include_source",
        "max_inputs",
        "experimental_options",
        "resumable",
        "budget",
        "priority",
        "limits",
        "tags",
        "restrict_modal_access",
        "restrict_access",
        "proxy",
    ]
)
RENAMED = {
    "keep_warm": "min_containers",
    "concurrency_limit": "max_containers",
    "container_idle_timeout": "scaledown_window",
    "allow_concurrent_inputs": "@lorry.concurrent(max_inputs=…)",
    "mounts": "image.add_local_dir(…)",
    "shared_volumes": "volumes",
    "network_file_systems": "volumes",
    "secret": "secrets=[…]",
}
LATER = {
    "schedule": "it is not run by the clock yet",
    "budget": "no budget is enforced yet",
    "limits": "no profile is applied yet",
    "experimental_options": "they have no effect here",
    "proxy": "it has no effect here",
    "priority": "inputs are served in their order for now",
    "region": "everything runs on the server's own machine",
    "cloud": "everything runs on the server's own machine",
}
NOT_CLS = frozenset({"schedule", "name", "is_generator", "resumable"})
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MEMORY_UNITS = {"": 1, "mib": 1, "mb": 1, "gib": 1024, "gb": 1024, "tib": 1 << 20, "tb": 1 << 20}


def check_names(given: Collection[str], where: str, excluded: Collection[str] = ()) -> None:
    """InvalidError for an unknown name, with the right one if it can be guessed."""
    for name in given:
        if name in RENAMED:
            raise InvalidError(f"{where}: {name}= is called {RENAMED[name]} now")
        if name in excluded:
            raise InvalidError(f"{where} takes no {name}=")
        if name not in KNOWN:
            close = difflib.get_close_matches(name, KNOWN - set(excluded), 1)
            hint = f"; did you mean {close[0]}=?" if close else ""
            raise InvalidError(f"{where} has no parameter {name}={hint}")


def warn_later(given: dict[str, Any], where: str) -> None:
    """One clear warning per parameter that has no effect yet, shown at the decorator's own line."""
    for name, consequence in LATER.items():
        if given.get(name):
            warnings.warn(f"{where}: {name}= is accepted, but {consequence}", UserWarning, stacklevel=5)


def seconds(value: float | int | str, name: str) -> float:
    """300, "90s", "15m", "24h", "7d" or "1h30m" in seconds; no upper limit."""
    if isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", value)
        if not parts or "".join(n + u for n, u in parts) != value.replace(" ", ""):
            raise InvalidError(f'{name}={value!r}: give seconds or a text such as "90s", "15m", "24h", "7d"')
        value = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidError(f"{name} must be a number of seconds or a text, not {value!r}")
    if not 0 < value < math.inf:
        raise InvalidError(f"{name}={value!r} must be more than 0 seconds, and finite")
    return float(value)


def mebibytes(value: int | float | str, name: str) -> int:
    """8192, "8GB", "8 GiB" or "512MiB" in MiB."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        unit = match.group(2).lower() if match else "?"
        if match is None or unit not in _MEMORY_UNITS:
            raise InvalidError(f'{name}={value!r}: give MiB as a number, or a text such as "8GB"')
        value = float(match.group(1)) * _MEMORY_UNITS[unit]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value < math.inf:
        raise InvalidError(f"{name}={value!r} must be a number of MiB, at least 1")
    return int(value)


def _pair(value: Any, name: str, convert: Any) -> tuple[Any, Any]:
    """(request, limit); a single value reserves and limits nothing."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise InvalidError(f"{name} must be a value or a pair (request, limit), not {value!r}")
        request, limit = convert(value[0], name), convert(value[1], name)
        if limit < request:
            raise InvalidError(f"{name}={value!r}: the limit is below the request")
        return request, limit
    return convert(value, name), None


def _cores(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InvalidError(f"{name}={value!r} must be a number of cores above 0")
    return float(value)


def resources(given: dict[str, Any]) -> Resources:
    cpu, cpu_limit = _pair(given["cpu"], "cpu", _cores) if given.get("cpu") is not None else (0.125, None)
    memory, limit = _pair(given["memory"], "memory", mebibytes) if given.get("memory") is not None else (128, None)
    disk = given.get("ephemeral_disk")
    return Resources(
        cpu=cpu,
        cpu_limit=cpu_limit,
        memory=memory,
        memory_limit=limit,
        ephemeral_disk=None if disk is None else mebibytes(disk, "ephemeral_disk"),
        gpus=parse_gpu(given.get("gpu")),
    )


def count(given: dict[str, Any], name: str, least: int = 0) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidError(f"{name}={value!r} must be a whole number of at least {least}")
    return value


def scaling(given: dict[str, Any]) -> Scaling:
    least = count(given, "min_containers") or 0
    most = count(given, "max_containers", 1)
    if most is not None and least > most:
        raise InvalidError(f"min_containers={least} is more than max_containers={most}")
    window = given.get("scaledown_window")
    return Scaling(
        min_containers=least,
        max_containers=most,
        buffer_containers=count(given, "buffer_containers") or 0,
        scaledown_window=60.0 if window is None else seconds(window, "scaledown_window"),
    )


def retry_policy(value: int | Retries | None) -> RetryPolicy:
    if value is None:
        return RetryPolicy()
    if isinstance(value, Retries):
        return value.policy
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f"retries={value!r} must be a whole number or a lorry.Retries")
    return Retries(max_retries=value, backoff_coefficient=1.0, initial_delay=1.0).policy


def check_memory_backoff(given: dict[str, Any]) -> None:
    """It multiplies a limit: without one there is nothing that a container could pass."""
    if retry_policy(given.get("retries")).memory_backoff > 1 and resources(given).memory_limit is None:
        amount = resources(given).memory
        raise InvalidError(
            f"memory_backoff needs a memory limit to begin with: memory=({amount}, {2 * amount}) reserves {amount} MiB "
            f"and limits to {2 * amount}"
        )


def texts(value: Any, name: str) -> dict[str, str]:
    """`env=` and `tags=`: a dict of texts."""
    if not isinstance(value, Mapping):
        raise InvalidError(f'{name} must be a dict of texts such as {{"KEY": "value"}}, not {value!r}')
    for key, text in value.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            raise InvalidError(f"{name}: {key!r} cannot be a name; it must be a text without '='")
        if not isinstance(text, str) or "\0" in text:
            raise InvalidError(f'{name}: the value of {key} must be a text such as "{text}", not {text!r}')
    return dict(value)


def sequence(value: Any, name: str) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
        raise InvalidError(f"{name} must be a list, not {value!r}")
    return value
