"""What the client's pip and uv are told by their own files and variables, as plain options.

Only the options that say *where packages come from* are read. Option names are pip's (`extra-index-url`).
"""

from __future__ import annotations

import configparser
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PIP_OPTIONS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "cert",
    "client-cert",
    "trusted-host",
    "proxy",
    "timeout",
)


def pip_options(environ: Mapping[str, str], home: Path, prefix: Path) -> dict[str, str]:
    """pip's own order: [global] of every file, then [install] of every file, then PIP_* variables."""
    options: dict[str, str] = {}
    parsed = [_read_ini(path) for path in _pip_files(environ, home, prefix)]
    for section in ("global", "install"):
        for config in parsed:
            if config.has_section(section):
                options |= {_option_name(name): value for name, value in config.items(section)}
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            options[_option_name(name[4:].lower())] = value
    return {name: options[name] for name in PIP_OPTIONS if options.get(name)}


def _option_name(written: str) -> str:
    name = written.strip().lower().replace("_", "-")
    return "timeout" if name == "default-timeout" else name


def _pip_files(environ: Mapping[str, str], home: Path, prefix: Path) -> Iterator[Path]:
    """Weakest first. `PIP_CONFIG_FILE=/dev/null` switches all files off, as it does for pip."""
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep):
        yield Path(folder) / "pip" / "pip.conf"
    yield Path("/etc/pip.conf")
    yield home / ".pip" / "pip.conf"
    yield _config_home(environ, home) / "pip" / "pip.conf"
    yield prefix / "pip.conf"
    if chosen:
        yield Path(chosen)


def _config_home(environ: Mapping[str, str], home: Path) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or home / ".config")


def _read_ini(path: Path) -> configparser.RawConfigParser:
    """A file that pip could not read either says nothing; `strict=False`: pip accepts repeated sections."""
    config = configparser.RawConfigParser(strict=False)
    try:
        config.read_string(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error):
        return configparser.RawConfigParser()
    return config


def uv_variables(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """uv.toml of the machine and of the user as UV_* variables; real UV_* variables win."""
    variables: dict[str, str] = {}
    for path in _uv_files(environ, home):
        variables |= _from_uv_toml(path)
    return variables | {name: value for name, value in environ.items() if _concerns_indexes(name) and value}


_UV_VARIABLES = {
    "default-index": "UV_DEFAULT_INDEX",
    "index-url": "UV_INDEX_URL",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "index-strategy": "UV_INDEX_STRATEGY",
    "allow-insecure-host": "UV_INSECURE_HOST",
    "native-tls": "UV_NATIVE_TLS",
    "system-certs": "UV_SYSTEM_CERTS",
    "offline": "UV_OFFLINE",
    "torch-backend": "UV_TORCH_BACKEND",
}


def _concerns_indexes(name: str) -> bool:
    if name in ("UV_INDEX", "UV_HTTP_TIMEOUT", *_UV_VARIABLES.values()):
        return True
    return name.startswith("UV_INDEX_") and name.endswith(("_USERNAME", "_PASSWORD"))


def _uv_files(environ: Mapping[str, str], home: Path) -> Iterator[Path]:
    if environ.get("UV_NO_CONFIG"):
        return
    if chosen := environ.get("UV_CONFIG_FILE"):
        yield Path(chosen)
        return
    yield Path("/etc/uv/uv.toml")
    yield _config_home(environ, home) / "uv" / "uv.toml"


def _from_uv_toml(path: Path) -> dict[str, str]:
    try:
        config: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    options = {**config, **config.get("pip", {})}
    variables = {variable: _as_text(name, options[name]) for name, variable in _UV_VARIABLES.items() if name in options}
    extra = []
    for index in config.get("index", []):
        if index.get("default"):
            variables["UV_DEFAULT_INDEX"] = index["url"]
        elif not index.get("explicit"):
            extra.append(f"{index['name']}={index['url']}" if "name" in index else index["url"])
    if extra:
        variables["UV_INDEX"] = " ".join(extra)
    return {name: value for name, value in variables.items() if value}


def _as_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else ""
    if isinstance(value, list):
        return ("," if name == "find-links" else " ").join(map(str, value))
    return str(value)
