"""An image as data: what Python packages, environment, files and working directory a container has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ImageBase(StrEnum):
    HOST = "host"
    """The Python environment that runs the client, as it is. Nothing is installed into it."""
    DEBIAN_SLIM = "debian_slim"
    """The client's Python with an environment of its own, above the host's /usr, all read-only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipInstall:
    """One `pip_install` layer. Exactly one of `packages` and `requirements` is set."""

    packages: tuple[str, ...] = ()
    requirements: str | None = None
    """Content of a requirements file, not its path: the content is what is cached."""
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    pre: bool = False
    extra_options: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A file that is shown in the container at the absolute path `path`; content by SHA-256 digest."""

    path: str
    digest: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    base: ImageBase = ImageBase.DEBIAN_SLIM
    python: str = ""
    """Path of the client's interpreter; the environment is built for it."""
    installs: tuple[PipInstall, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    files: tuple[ImageFile, ...] = ()
