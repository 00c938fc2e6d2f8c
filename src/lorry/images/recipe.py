"""One layer of an image as a uv command: arguments, environment, requirements file.

Whatever may hold a credential travels in the environment, which only the build's own user can read, never in
the arguments, which everybody can, and never in a file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from lorry.images.credentials import as_variables, redact, secrets_in
from lorry.images.indexes import IndexSettings, join_find_links, local_path
from lorry.model.image import ImageSpec, PipInstall

_INDEX_VARIABLES = ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX")
_LOCAL_FILE = re.compile(r"file://(/[^\s#]+)|^\s*(/[^\s#]+)", re.MULTILINE)
_TITLE_LENGTH = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCommand:
    title: str
    """`layer 2 of 3 (torch, transformers)`, for log and errors; without credentials."""
    requirements: str
    options: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    readable: tuple[str, ...] = ()


def base_environment(cache: str, home: str, path: str) -> dict[str, str]:
    """The whole environment of a build command besides index settings; nothing is inherited from the server.

    `UNCHECKED_HASH`: the image is read-only, so Python need not compare sources with .pyc at each import.
    """
    return {
        "PATH": path,
        "HOME": home,
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "UV_CACHE_DIR": cache,
        "UV_LINK_MODE": "hardlink",
        "UV_NO_CONFIG": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_COMPILE_BYTECODE": "1",
        "UV_COMPILE_BYTECODE_TIMEOUT": "0",
        "PYC_INVALIDATION_MODE": "UNCHECKED_HASH",
    }


def layer_command(spec: ImageSpec, number: int, settings: IndexSettings) -> LayerCommand:
    """The command of install `number` (from 0). Its own indexes are asked before those of the client."""
    install = spec.installs[number]
    env = {name: value for name, value in settings.env.items() if name != "UV_NO_INDEX"}
    options = ["--prerelease=allow"] if install.pre else []
    if "UV_NO_INDEX" in settings.env:
        options.append("--no-index")
        env = {name: value for name, value in env.items() if name not in _INDEX_VARIABLES}
    else:
        _set_indexes(env, install)
    places = [*install.find_links, *filter(None, env.get("UV_FIND_LINKS", "").split(","))]
    if places:
        env["UV_FIND_LINKS"] = join_find_links(places)
    written = _written(install)
    title = f"layer {number + 1} of {len(spec.installs)} ({summary(install)})"
    return LayerCommand(
        title=redact(title, settings.secrets),
        requirements=as_variables(written, env) + "\n",
        options=(*options, *shlex.split(install.extra_options)),
        env=env,
        readable=_local_paths(install, written),
    )


def layer_secrets(spec: ImageSpec) -> tuple[str, ...]:
    """Credentials written in the image itself."""
    found: set[str] = set()
    for install in spec.installs:
        urls = (
            install.index_url or "",
            *install.extra_index_urls,
            *install.find_links,
            install.extra_options,
        )
        for text in (*install.packages, install.requirements or "", *urls):
            found.update(secrets_in(text))
    return tuple(sorted(found))


def _set_indexes(env: dict[str, str], install: PipInstall) -> None:
    if install.index_url:
        env.pop("UV_DEFAULT_INDEX", None)
        env["UV_INDEX_URL"] = install.index_url
    if install.extra_index_urls:
        before = env.get("UV_EXTRA_INDEX_URL", "")
        env["UV_EXTRA_INDEX_URL"] = " ".join((*install.extra_index_urls, before)).strip()


def summary(install: PipInstall) -> str:
    """What it names, for people."""
    lines = _written(install).splitlines()
    names = [line.partition(" #")[0].partition(" --hash")[0].strip() for line in lines if not line.startswith("#")]
    text = ", ".join(filter(None, names))
    return text if len(text) <= _TITLE_LENGTH else text[: _TITLE_LENGTH - 1] + "…"


def _written(install: PipInstall) -> str:
    return "\n".join(install.packages) if install.requirements is None else install.requirements


def _local_paths(install: PipInstall, written: str) -> tuple[str, ...]:
    found = [local_path(place) for place in install.find_links]
    indexes = [url for url in (install.index_url, *install.extra_index_urls) if url]
    found += [local_path(url, index=True) for url in indexes]
    found += [unquote(url) or plain for url, plain in _LOCAL_FILE.findall(written)]
    return tuple(sorted({path for path in found if path and path.startswith("/")}))
