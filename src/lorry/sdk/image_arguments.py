"""Arguments of the Image methods, checked where they are written."""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from lorry.errors import InvalidError
from lorry.model.image import PipInstall

Strings = str | Sequence[str] | None
UNUSED = {"cloud", "cpu", "env", "force_build", "gpu", "include_source", "memory", "region", "secrets", "timeout"}
UNUSED |= {"cloud_bucket_mounts", "network_file_systems", "uv_version", "volumes"}
"""Parameters of Modal's build methods that change nothing here, apart from those that a method does take."""
_ALL_INDEXES = "--index-strategy=unsafe-best-match"


def strings(method: str, name: str, values: Iterable[object]) -> tuple[str, ...]:
    """Strings, and lists of strings, as one flat tuple."""
    flat: list[str] = []
    for value in values:
        items = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        for item in items:
            if not isinstance(item, str):
                raise InvalidError(
                    f"Image.{method}: {name} must be strings or flat lists of strings, but {item!r} is "
                    f"{type(item).__name__}."
                )
            flat.append(item)
    return tuple(flat)


def paths(method: str, name: str, values: object) -> tuple[str, ...]:
    if values is None:
        return ()
    if isinstance(values, (str, Path)):
        raise InvalidError(f"Image.{method}: {name} is a list of paths: [{str(values)!r}].")
    if not isinstance(values, (list, tuple)):
        raise InvalidError(f"Image.{method}: {name} is a list of paths, not {values!r}.")
    for value in values:
        if not isinstance(value, (str, Path)) or not str(value):
            raise InvalidError(f"Image.{method}: {name} must be a path, not {value!r}.")
    return tuple(map(str, values))


def pip_options(
    method: str,
    find_links: Strings,
    index_url: str | None,
    extra_index_url: Strings,
    pre: bool,
    extra_options: str,
) -> PipInstall:
    """Everything of a layer but its packages."""
    if index_url is not None and not isinstance(index_url, str):
        raise InvalidError(f"Image.{method}: index_url must be one url, not {index_url!r}. See extra_index_url.")
    return PipInstall(
        index_url=index_url or None,
        extra_index_urls=strings(method, "extra_index_url", _listed(extra_index_url)),
        find_links=strings(method, "find_links", _listed(find_links)),
        pre=bool(pre),
        extra_options=_options(method, extra_options),
    )


def all_indexes(options: PipInstall) -> PipInstall:
    """pip asks every index for the best version; uv by itself stops at the first that has the name."""
    if not options.extra_index_urls or "--index-strategy" in options.extra_options:
        return options
    return replace(options, extra_options=f"{options.extra_options} {_ALL_INDEXES}".strip())


def container_path(method: str, path: object, *, keep_slash: bool = False) -> str:
    """An absolute path in the container, without `.` and `..`."""
    text = str(path)
    if not isinstance(path, (str, PurePosixPath)) or not text.startswith("/"):
        raise InvalidError(f"Image.{method}: {path!r} must be an absolute path in the container, such as '/data'.")
    if ".." in PurePosixPath(text).parts:
        raise InvalidError(f"Image.{method}: {text!r} must not contain '..'.")
    clean = "/" + str(PurePosixPath(text)).lstrip("/")
    return clean.rstrip("/") + "/" if keep_slash and text.endswith("/") else clean


def environment(variables: object) -> Mapping[str, str]:
    if not isinstance(variables, Mapping):
        raise InvalidError(f"Image.env takes a dict of strings, not {variables!r}.")
    for name, value in variables.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise InvalidError(f"Image.env: {name!r} cannot be the name of an environment variable.")
        if not isinstance(value, str) or "\0" in value:
            raise InvalidError(f"Image.env: the value of {name} must be a string, not {value!r}.")
    return variables


def other_python(wanted: object) -> str:
    """A minor version such as `3.12`, empty if it is the client's own."""
    version = python_version("debian_slim", "python_version", wanted)
    return "" if version == f"{sys.version_info.major}.{sys.version_info.minor}" else version


def python_version(method: str, name: str, wanted: object) -> str:
    """The minor version; empty for None. A patch version is looked at only where it is the client's own."""
    if wanted is None:
        return ""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not isinstance(wanted, str):
        raise InvalidError(f'Image.{method}: {name} must be a string such as "{here}", not {wanted!r}.')
    if not re.fullmatch(r"\d+\.\d+(?:\.\d+)?", wanted):
        raise InvalidError(f'Image.{method}: {wanted!r} is not a Python version such as "{here}".')
    minor = ".".join(wanted.split(".")[:2])
    if not (3, 11) <= tuple(map(int, minor.split("."))) <= (3, 14):
        raise InvalidError(f"Image.{method}: containers run Python 3.11 to 3.14, not {wanted}.")
    if wanted not in (minor, f"{here}.{sys.version_info.micro}"):
        raise InvalidError(f'Image.{method}: give the minor version, "{minor}"; its newest patch is taken.')
    return minor


def debian_package(name: str) -> None:
    """Also what apt takes with a version, a release or an architecture."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9]+)?(?:[=/][A-Za-z0-9.+~:-]+)?", name):
        raise InvalidError(f"Image.apt_install: {name!r} is not the name of a Debian package, such as 'ffmpeg'.")


def warn_unused(method: str, given: Mapping[str, object]) -> None:
    for name in given:
        if name not in UNUSED:
            raise TypeError(f"Image.{method} has no parameter {name!r}")
        warnings.warn(f"Image.{method}: {name}= has no effect in Lorry's builds yet", stacklevel=3)


def with_hashes(extra_options: str, require_hashes: bool) -> str:
    return f"{extra_options} --require-hashes".strip() if require_hashes else extra_options


def archive_digest(path: str) -> str:
    """Reads the archive's metadata; raises InvalidError if it is none."""
    from lorry.images.archive import read_archive

    if os.path.isdir(path):
        raise InvalidError(
            f"Image.from_oci_archive: {path!r} is a folder. If it is an OCI layout, `tar -C {path} -cf image.tar .` "
            "makes an archive of it."
        )
    if not os.path.isfile(path):
        raise InvalidError(f"Image.from_oci_archive: there is no file {path!r}.")
    return read_archive(path).digest


def check_nesting(placed: Iterable[str]) -> None:
    """Raises InvalidError when one added path would have to be both a file and a folder."""
    known = set(placed)
    for path in known:
        for parent in map(str, PurePosixPath(path).parents):
            if parent in known:
                raise InvalidError(f"The image has a file at {parent!r}, so nothing can be added as {path!r}.")


def file_mode(path: Path) -> int:
    """Only whether it can be executed survives; containers run under another user."""
    return 0o755 if path.stat().st_mode & stat.S_IXUSR and os.access(path, os.X_OK) else 0o644


def _listed(values: object) -> Sequence[object]:
    """One value, or a list of them; what they are is checked by `strings`."""
    if values is None:
        return ()
    return values if isinstance(values, (list, tuple)) else (values,)


def _options(method: str, extra_options: object) -> str:
    if not isinstance(extra_options, str):
        raise InvalidError(f"Image.{method}: extra_options is one string, such as '--no-deps', not {extra_options!r}.")
    try:
        words = shlex.split(extra_options)
    except ValueError as error:
        raise InvalidError(f"Image.{method}: extra_options cannot be split into words: {error}.") from error
    for word in words:
        url = word.rpartition("=")[2]
        if "://" in url and urlsplit(url).username:
            raise InvalidError(
                f"Image.{method}: extra_options holds a password, which every user of the machine could read "
                "there. Pass the url as index_url= or extra_index_url=, or set it in PIP_INDEX_URL."
            )
    return extra_options
