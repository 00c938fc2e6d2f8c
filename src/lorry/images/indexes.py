"""Where packages come from: the client's pip and uv settings, in the words that the builder's uv understands.

This runs in the client, because only the client sees its own environment and files. The result travels beside
the image, never inside it: index settings are no part of an image's digest.
"""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lorry.images.client_config import pip_options, uv_variables
from lorry.images.credentials import redact, secrets_in
from lorry.model.image import ImageSpec

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_PIP_INDEXES = {"index-url": "UV_INDEX_URL", "extra-index-url": "UV_EXTRA_INDEX_URL"}
_SAME_MEANING = {
    "UV_INDEX_URL": ("UV_INDEX_URL", "UV_DEFAULT_INDEX"),
    "UV_EXTRA_INDEX_URL": ("UV_EXTRA_INDEX_URL", "UV_INDEX"),
}
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_INDEX_NAME = re.compile(r"^[\w.-]+=(?=[\w+.-]+:)")
"""uv writes a named index as `name=url`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """What uv is handed. `repr` shows no value: `env` holds credentials."""

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables for uv; `UV_NO_INDEX` is ours, and becomes the option that uv has for it."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Words that are blacked out in logs and errors."""
    readable: tuple[str, ...] = ()
    """Local indexes, wheel folders and certificates that the build must be able to read."""

    def redact(self, text: str) -> str:
        return redact(text, self.secrets)


def client_index_settings(environ: Mapping[str, str], home: Path, prefix: Path) -> IndexSettings:
    """The settings of the Python environment at `prefix` for the user whose home is `home`.

    uv's own settings win over pip's, option by option. pip asks all its indexes and takes the best version,
    uv stops at the first index that knows the name: where indexes come from pip, uv is told to do as pip.
    """
    uv = uv_variables(environ, home)
    env = _transport(environ, pip := pip_options(environ, home, prefix))
    for option, variable in _PIP_INDEXES.items():
        if option in pip and not any(name in uv for name in _SAME_MEANING[variable]):
            env[variable] = " ".join(pip[option].split())
            env["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if "find-links" in pip:
        env["UV_FIND_LINKS"] = join_find_links(_existing(pip["find-links"].split(), home))
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        env["UV_NO_INDEX"] = "1"
    env = {name: value for name, value in {**env, **uv}.items() if value}
    _add_netrc(env, Path(environ.get("NETRC") or home / ".netrc"))
    return IndexSettings(env=env, secrets=_secrets(env), readable=_local_paths(env))


def with_variables(settings: IndexSettings, spec: ImageSpec, environ: Mapping[str, str]) -> IndexSettings:
    """Adds the client's value of every `${NAME}` in the image's requirements and index urls, as pip does."""
    written = " ".join(
        " ".join((*i.packages, i.requirements or "", i.index_url or "", *i.extra_index_urls, *i.find_links))
        for i in spec.installs
    )
    values = {name: environ[name] for name in _VARIABLE.findall(written) if name in environ}
    secrets = {*settings.secrets, *values.values(), *(unquote(value) for value in values.values())}
    return replace(settings, env={**values, **settings.env}, secrets=tuple(sorted(secrets)))


def join_find_links(places: Iterable[str]) -> str:
    """uv splits this variable at commas, so a path that has one travels as a url."""
    return ",".join("file://" + quote(place) if "," in place else place for place in places)


def local_path(place: str, *, index: bool = False) -> str | None:
    """The folder behind a `file:` url or plain path, None for anything on the network.

    The pages of a local index link to files beside it (`../../files/`), so for `…/simple` its parent.
    """
    if place.startswith("file:"):
        path = unquote(urlsplit(place).path)
    elif "://" in place:
        return None
    else:
        path = place
    path = path.rstrip("/") or "/"
    return os.path.dirname(path) if index and os.path.basename(path) == "simple" else path


def _transport(environ: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    """Proxies, certificates, trusted hosts and patience."""
    env = {name: environ[name] for name in ("SSL_CERT_DIR", "SSL_CLIENT_CERT") if name in environ}
    for name in _PROXIES:
        env[name] = environ.get(name.lower()) or environ.get(name, "")
    if "proxy" in pip:
        env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), pip["proxy"])
    for name in _PROXIES[:3]:
        if env[name] and "://" not in env[name]:  # also so that its password is found and masked
            env[name] = "http://" + env[name]
    bundles = (environ.get("SSL_CERT_FILE"), pip.get("cert"), environ.get("REQUESTS_CA_BUNDLE"))
    bundle = next((path for path in bundles if path), "")
    env["SSL_CERT_DIR" if bundle and os.path.isdir(bundle) else "SSL_CERT_FILE"] = bundle
    env["SSL_CLIENT_CERT"] = env.get("SSL_CLIENT_CERT") or pip.get("client-cert", "")
    env["UV_INSECURE_HOST"] = " ".join(pip.get("trusted-host", "").split())
    env["UV_PYTHON_INSTALL_MIRROR"] = environ.get("UV_PYTHON_INSTALL_MIRROR", "")
    env["UV_HTTP_TIMEOUT"] = pip.get("timeout", "").partition(".")[0]
    return env


def _existing(places: Iterable[str], home: Path) -> list[str]:
    """pip warns about a wheel folder that is not there and goes on; uv would fail."""
    absolute = [str(home) + place[1:] if place.startswith("~/") else place for place in places]
    return [place for place in absolute if (path := local_path(place)) is None or os.path.exists(path)]


def _add_netrc(env: dict[str, str], path: Path) -> None:
    """The build cannot read the user's ~/.netrc, so its logins go into the index urls that lack one."""
    try:
        logins = netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX"):
        if name in env:
            env[name] = " ".join(_with_login(url, logins) for url in env[name].split())


def _with_login(url: str, logins: Mapping[str, tuple[str, str, str]]) -> str:
    host = urlsplit(_INDEX_NAME.sub("", url)).hostname
    if host is None or host not in logins or "@" in url:
        return url
    login, _, password = logins[host]
    return url.replace("://", f"://{quote(login, safe='')}:{quote(password, safe='')}@", 1)


def _secrets(env: Mapping[str, str]) -> tuple[str, ...]:
    found = {secret for value in env.values() for part in value.split() for secret in secrets_in(part)}
    found |= {value for name, value in env.items() if name.endswith("_PASSWORD")}
    return tuple(sorted(found))


def _local_paths(env: Mapping[str, str]) -> tuple[str, ...]:
    """Both the path as written and what it is behind symbolic links, for whoever mounts it."""
    indexes = " ".join(env.get(name, "") for name in ("UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INDEX"))
    found = [local_path(_INDEX_NAME.sub("", url), index=True) for url in indexes.split()]
    found += [local_path(url, index=True) for url in env.get("UV_DEFAULT_INDEX", "").split()]
    found += [local_path(place) for place in env.get("UV_FIND_LINKS", "").split(",") if place]
    found += [env.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT")]
    present = {path for path in found if path and os.path.exists(path)}
    return tuple(sorted(present | {os.path.realpath(path) for path in present}))
