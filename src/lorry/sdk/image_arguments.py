"""Arguments of the Image methods, checked where they are written."""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from lorry.errors import InvalidError
from lorry.model.image import PipInstall

Strings = str | Sequence[str] | None
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


def check_python(wanted: object) -> None:
    """Another Python than the client's needs an image with a root file system of its own."""
    if wanted is None:
        return
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not isinstance(wanted, str):
        raise InvalidError(f'Image.debian_slim: python_version must be a string such as "{here}", not {wanted!r}.')
    if not re.fullmatch(r"\d+\.\d+(?:\.\d+)?", wanted):
        raise InvalidError(f'Image.debian_slim: {wanted!r} is not a Python version such as "{here}".')
    full = f"{here}.{sys.version_info.micro}"
    if wanted not in (here, full):
        raise InvalidError(
            f"Image.debian_slim: Python {wanted} is not available, {full} is: for now an image uses the "
            "Python that runs your program. Other Pythons need a Debian root image, which comes later. Leave "
            f"python_version out, or run the program with Python {wanted}."
        )


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
