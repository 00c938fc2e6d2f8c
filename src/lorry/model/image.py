"""An image as data: what Python packages, environment, files and working directory a container has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ImageBase(StrEnum):
    HOST = "host"
    """The Python environment that runs the client, as it is. Nothing is installed into it."""
    DEBIAN_SLIM = "debian_slim"
    """The client's Python with an environment of its own, above the host's /usr, all read-only."""
    DEBIAN_ROOT = "debian_root"
    """`debian_slim` with something that needs a root file system of its own: that of a Debian release."""
    OCI_ARCHIVE = "oci_archive"
    """The root file system of a local archive, as `docker save` writes it."""


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


class StepKind(StrEnum):
    """What a build does in an image with a root file system of its own."""

    APT = "apt"
    COMMANDS = "commands"
    FUNCTION = "function"
    PIP = "pip"
    FILES = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStep:
    """One layer above the root file system. Which fields count depends on the kind."""

    kind: StepKind
    words: tuple[str, ...] = ()
    """Debian packages, or shell commands."""
    install: int = 0
    """Index into `ImageSpec.installs`."""
    files: tuple[ImageFile, ...] = ()
    key: str = ""
    """What names a function's content: its source, globals and arguments. The payload may differ for equal ones."""
    payload: str = ""
    """Digest of the function and its arguments, pickled."""
    env: tuple[tuple[str, str], ...] = ()
    """What `Image.env` had set before this step, with its own `env=`."""
    workdir: str | None = None
    secret_ids: tuple[str, ...] = ()
    """Their values are seen by the step and are no part of its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    base: ImageBase = ImageBase.DEBIAN_SLIM
    python: str = ""
    """Path of the client's interpreter; the environment is built for it."""
    installs: tuple[PipInstall, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    files: tuple[ImageFile, ...] = ()
    python_version: str = ""
    """`3.12`, where the root file system has or gets a Python of its own; empty: what an archive has."""
    archive: str = ""
    """Path of the archive on this machine."""
    archive_digest: str = ""
    """`sha256:…` of its manifest, which names everything in it."""
    steps: tuple[BuildStep, ...] = ()

    @property
    def rooted(self) -> bool:
        """It has a root file system of its own, and nothing of the host's /usr."""
        return self.base in (ImageBase.DEBIAN_ROOT, ImageBase.OCI_ARCHIVE)

    def blobs(self) -> tuple[str, ...]:
        """Digests of the uploaded files that its containers, or a build, need."""
        step_files = tuple(file.digest for step in self.steps for file in step.files)
        return (*(file.digest for file in self.files), *step_files, *(s.payload for s in self.steps if s.payload))
