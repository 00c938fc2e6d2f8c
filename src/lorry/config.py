"""Settings, resolved once per process: argument > environment > file > default.

The file is `$XDG_CONFIG_HOME/lorry/config.toml` (or `$LORRY_CONFIG`): keys as the fields below, upper-cased with
`LORRY_` in front as environment variables.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorry.errors import InvalidError
from lorry.timeouts import IDLE_EXIT

MAX_SOCKET_PATH = 107
"""sun_path has 108 bytes with its terminating zero (unix(7))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    state_dir: Path
    """Everything the server keeps. One folder to delete."""
    runtime_dir: Path
    """Sockets; emptied by a reboot."""
    sandbox: str = "auto"
    """`auto`, `namespaces`, `bwrap` or `process`."""
    idle_exit: float = IDLE_EXIT
    """Seconds without anything to do after which the embedded server ends."""
    gpu_fixture: str = ""
    """A file in the format of `nvidia-smi --query-gpu=index,name,memory.total`, instead of the machine's cards."""
    log_limit: int = 256
    """MiB of output kept per app; older output goes first."""

    @property
    def client_socket(self) -> Path:
        return self.runtime_dir / "s"

    @property
    def inner_dir(self) -> Path:
        """The folder that every sandbox sees as /run/lorry."""
        return self.runtime_dir / "inner"

    @property
    def inner_socket(self) -> Path:
        return self.inner_dir / "s"


def resolve(environ: Mapping[str, str] = os.environ, **arguments: Any) -> Settings:
    """The settings of this process. InvalidError names the source of a value that cannot work."""
    values: dict[str, Any] = {"state_dir": _default_state(environ)}
    values.update(_from_file(environ))
    for field in dataclasses.fields(Settings):
        text = environ.get(f"LORRY_{field.name.upper()}")
        if text:
            values[field.name] = _convert(field.name, text, f"LORRY_{field.name.upper()}")
    values.update({key: value for key, value in arguments.items() if value is not None})
    state = Path(values["state_dir"]).expanduser().absolute()
    runtime = Path(values.get("runtime_dir") or _default_runtime(environ, state)).expanduser().absolute()
    values.update(state_dir=state, runtime_dir=runtime)
    settings = Settings(**values)
    _check_socket_path(settings)
    return settings


def _default_state(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "lorry"


def _default_runtime(environ: Mapping[str, str], state: Path) -> Path:
    """Short, because socket paths are limited to 107 bytes; one per state directory."""
    name = hashlib.sha256(str(state).encode()).hexdigest()[:12]
    base = environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "lorry" / name if base else Path(f"/tmp/lorry-{os.getuid()}") / name  # noqa: S108


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    base = Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return Path(environ.get("LORRY_CONFIG") or base / "lorry" / "config.toml")


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    path = config_file(environ)
    try:
        raw = tomllib.loads(path.read_text())
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise InvalidError(f"{path} is not valid TOML: {broken}") from None
    known = {field.name for field in dataclasses.fields(Settings)}
    unknown = sorted(raw.keys() - known)
    if unknown:
        raise InvalidError(f"{path}: unknown setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return {key: _convert(key, str(value), str(path)) for key, value in raw.items()}


def _convert(name: str, text: str, source: str) -> Any:
    try:
        if name in ("state_dir", "runtime_dir"):
            return Path(text)
        if name == "idle_exit":
            return float(text)
        return int(text) if name == "log_limit" else text
    except ValueError:
        raise InvalidError(f"{source}: {name} must be a number, not {text!r}") from None


def _check_socket_path(settings: Settings) -> None:
    path = os.fsencode(settings.inner_socket)
    if len(path) > MAX_SOCKET_PATH:
        raise InvalidError(
            f"the socket path {settings.inner_socket} has {len(path)} bytes; Unix allows {MAX_SOCKET_PATH}. "
            "Set LORRY_RUNTIME_DIR to a shorter folder"
        )
