"""What a function's containers have: Python packages, environment, files, working directory."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lorry.errors import InvalidError
from lorry.model.image import ImageBase, ImageSpec, PipInstall, StepKind
from lorry.sdk import image_arguments as check
from lorry.sdk.file_pattern_matcher import NON_PYTHON_FILES, as_matcher
from lorry.sdk.image_function import check_function
from lorry.sdk.image_later import LaterImageMethods
from lorry.sdk.image_steps import NEEDS_ROOT, Added, Project, Step, check_secrets, merged, placed_files
from lorry.sdk.local_files import AddedDir, AddedFile, AddedModule
from lorry.sdk.python_path import executable
from lorry.sdk.requirements import check_package, requirements_text, resolved_package
from lorry.sdk.secret import Secret

Ignore = str | Sequence[str] | Callable[[Path], bool]
Strings = check.Strings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    packages: tuple[str, ...]
    requirements: tuple[str, ...]
    options: PipInstall
    """Everything but the packages."""
    project: Project | None = None

    def install(self) -> PipInstall:
        if self.project is not None:
            return replace(self.options, requirements=self.project.requirements())
        packages = tuple(map(resolved_package, self.packages))
        if not self.requirements:
            return replace(self.options, packages=packages, find_links=self._find_links())
        text = "\n".join((*packages, *map(requirements_text, self.requirements)))
        return replace(self.options, requirements=text, find_links=self._find_links())

    def _find_links(self) -> tuple[str, ...]:
        return tuple(
            place if "://" in place else str(Path(place).expanduser().absolute()) for place in self.options.find_links
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    base: ImageBase
    layers: tuple[_Layer, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    added: tuple[Added, ...] = ()
    """Shown when a container starts."""
    steps: tuple[Step, ...] = ()
    """What is done at build, in order; Python packages and copied files too, for roots of their own."""
    python_version: str = ""
    """Given and different from the client's."""
    archive: str = ""

    @property
    def final_base(self) -> ImageBase:
        """`debian_slim` gets a root file system of its own when something needs one."""
        if self.base is not ImageBase.DEBIAN_SLIM:
            return self.base
        rooted = self.python_version or any(step.kind in NEEDS_ROOT for step in self.steps)
        return ImageBase.DEBIAN_ROOT if rooted else ImageBase.DEBIAN_SLIM


class Image(LaterImageMethods):
    """Immutable: each method returns a new image. Nothing is read or built before the app starts.

    image = lorry.Image.debian_slim().uv_pip_install("torch", "transformers").env({"HF_HUB_OFFLINE": "1"})
    """

    __slots__ = ("_recipe",)
    _recipe: _Recipe

    def __init__(self) -> None:
        """Use `Image.debian_slim()`, `Image.from_oci_archive()` or `Image.host()`."""
        raise InvalidError(
            "Image() is not called: begin with Image.debian_slim(), Image.from_oci_archive(path) or Image.host()."
        )

    @classmethod
    def _of(cls, recipe: _Recipe) -> Image:
        image = object.__new__(cls)
        image._recipe = recipe
        return image

    @staticmethod
    def host() -> Image:
        """The Python environment that runs the client, as it is: the fastest start, nothing added."""
        return Image._of(_Recipe(base=ImageBase.HOST))

    @staticmethod
    def debian_slim(python_version: str | None = None) -> Image:
        """Python with an environment of its own, empty at first; by default the version of this program.

        The client's own interpreter is used, above the host's /usr, as long as nothing needs more. Another version,
        or `apt_install`, `run_commands` and `run_function`, give the image a Debian root file system.
        """
        return Image._of(_Recipe(base=ImageBase.DEBIAN_SLIM, python_version=check.other_python(python_version)))

    @staticmethod
    def from_oci_archive(path: str | Path, *, add_python: str | None = None) -> Image:
        """The image in a local archive: an uncompressed tar file of `docker save`, `podman save` or skopeo.

        Its own `python3` (3.11 to 3.14) runs the functions; `add_python="3.12"` puts one there. Its ENV and WORKDIR
        hold; ENTRYPOINT, CMD and USER do not.
        """
        (local,) = check.paths("from_oci_archive", "path", [path])
        version = check.python_version("from_oci_archive", "add_python", add_python)
        return Image._of(_Recipe(base=ImageBase.OCI_ARCHIVE, archive=local, python_version=version))

    def apt_install(self, *packages: str | Sequence[str], **unused: Any) -> Image:
        """Adds Debian packages (or Ubuntu's, in an archive of it), without what they only recommend."""
        check.warn_unused("apt_install", unused)
        names = check.strings("apt_install", "packages", packages)
        for name in names:
            check.debian_package(name)
        return self._with_step("apt_install", Step(kind=StepKind.APT, words=names)) if names else self

    def run_commands(
        self,
        *commands: str | Sequence[str],
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        force_build: bool = False,
        **unused: Any,
    ) -> Image:
        """Runs shell commands as root, each in a shell of its own; what they write becomes a layer.

        `secrets` are seen as environment variables, are no part of what names the layer, and are blacked out in logs.
        """
        check.warn_unused("run_commands", unused)
        words = check.strings("run_commands", "commands", commands)
        step = Step(
            kind=StepKind.COMMANDS,
            words=words,
            env=merged(self._recipe.env, env),
            workdir=self._recipe.workdir,
            secrets=check_secrets("run_commands", secrets),
            force=uuid.uuid4().hex if force_build else "",
        )
        return self._with_step("run_commands", step) if words else self

    def run_function(
        self,
        raw_f: Callable[..., Any],
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[Secret] = (),
        force_build: bool = False,
        **unused: Any,
    ) -> Image:
        """Calls a function of this program while the image is built, for example to download weights.

        It travels by value, with what it uses of its own file, and runs again when its source, the functions and
        plain values of its file that it uses, or its arguments change. The image's Python must be of the same minor
        version as this one. Write to a folder such as /models: home and /tmp are each container's own.
        """
        check.warn_unused("run_function", unused)
        step = Step(
            kind=StepKind.FUNCTION,
            function=check_function(raw_f),
            args=tuple(args),
            kwargs=tuple((kwargs or {}).items()),
            env=merged(self._recipe.env, env),
            workdir=self._recipe.workdir,
            secrets=check_secrets("run_function", secrets),
            force=uuid.uuid4().hex if force_build else "",
        )
        return self._with_step("run_function", step)

    def pip_install(
        self,
        *packages: str | Sequence[str],
        find_links: Strings = None,
        index_url: str | None = None,
        extra_index_url: Strings = None,
        pre: bool = False,
        extra_options: str = "",
    ) -> Image:
        """Adds packages. All indexes are asked and the best version wins, as with pip; uv does the work."""
        options = check.pip_options("pip_install", find_links, index_url, extra_index_url, pre, extra_options)
        names = check.strings("pip_install", "packages", packages)
        return self._with_layer("pip_install", names, (), check.all_indexes(options))

    def uv_pip_install(
        self,
        *packages: str | Sequence[str],
        requirements: Sequence[str | Path] | None = None,
        find_links: Strings = None,
        index_url: str | None = None,
        extra_index_url: Strings = None,
        pre: bool = False,
        require_hashes: bool = False,
        extra_options: str = "",
    ) -> Image:
        """Adds packages and the contents of requirements files, resolved together, by uv's rules."""
        method = "uv_pip_install"
        extra = check.with_hashes(extra_options, require_hashes)
        options = check.pip_options(method, find_links, index_url, extra_index_url, pre, extra)
        files = check.paths(method, "requirements", requirements)
        return self._with_layer(method, check.strings(method, "packages", packages), files, options)

    def pip_install_from_requirements(
        self,
        requirements_txt: str | Path,
        find_links: Strings = None,
        *,
        index_url: str | None = None,
        extra_index_url: Strings = None,
        pre: bool = False,
        require_hashes: bool = False,
        extra_options: str = "",
    ) -> Image:
        """Adds what a requirements file names, files that it includes with `-r` too."""
        method = "pip_install_from_requirements"
        extra = check.with_hashes(extra_options, require_hashes)
        options = check.pip_options(method, find_links, index_url, extra_index_url, pre, extra)
        files = check.paths(method, "requirements_txt", [requirements_txt])
        return self._with_layer(method, (), files, check.all_indexes(options))

    def uv_sync(
        self,
        uv_project_dir: str | Path = "./",
        *,
        groups: Sequence[str] = (),
        extras: Sequence[str] = (),
        frozen: bool = True,
        extra_options: str = "",
        **unused: Any,
    ) -> Image:
        """Adds what the uv.lock of a project names, each file checked against its hash there.

        The project itself is not installed: its source is shipped. `frozen=False` brings uv.lock up to date first.
        """
        check.warn_unused("uv_sync", unused)
        (folder,) = check.paths("uv_sync", "uv_project_dir", [uv_project_dir])
        options = check.pip_options("uv_sync", None, None, None, False, extra_options)
        project = Project(
            folder=folder,
            groups=check.strings("uv_sync", "groups", groups),
            extras=check.strings("uv_sync", "extras", extras),
            frozen=frozen,
        )
        return self._with_layer("uv_sync", (), (), options, project)

    def env(self, vars: Mapping[str, str]) -> Image:
        """Sets environment variables of the containers; a later value wins."""
        return self._but(env=tuple({**dict(self._recipe.env), **check.environment(vars)}.items()))

    def workdir(self, path: str | PurePosixPath) -> Image:
        """Sets the folder that the function starts in."""
        return self._but(workdir=check.container_path("workdir", path))

    def add_local_file(self, local_path: str | Path, remote_path: str | PurePosixPath, *, copy: bool = False) -> Image:
        """Shows a file at `remote_path`, or in it under its own name if that ends with a slash.

        With `copy` it is there for build steps that follow (`run_commands`, `run_function`); without, it is shown
        when a container starts, and changing it rebuilds nothing.
        """
        (local,) = check.paths("add_local_file", "local_path", [local_path])
        remote = check.container_path("add_local_file", remote_path, keep_slash=True)
        return self._with(AddedFile(local=local, remote=remote), copy=copy)

    def add_local_dir(
        self,
        local_path: str | Path,
        remote_path: str | PurePosixPath,
        *,
        copy: bool = False,
        ignore: Ignore = (),
    ) -> Image:
        """Shows what a folder holds below `remote_path`. `ignore`: see `FilePatternMatcher`."""
        (local,) = check.paths("add_local_dir", "local_path", [local_path])
        remote = check.container_path("add_local_dir", remote_path)
        return self._with(AddedDir(local=local, remote=remote, ignore=as_matcher(ignore)), copy=copy)

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore = NON_PYTHON_FILES) -> Image:
        """Makes modules and packages that can be imported here importable there; only .py by default."""
        names = check.strings("add_local_python_source", "modules", modules)
        for name in names:
            if not all(part.isidentifier() for part in name.split(".")):
                raise InvalidError(f"add_local_python_source: {name!r} is not a module name such as 'mylib'.")
        matcher = as_matcher(ignore)
        return self._with(*(AddedModule(module=name, ignore=matcher) for name in names), copy=copy)

    @contextmanager
    def imports(self) -> Iterator[None]:
        """Around imports that only work in this image.

            with image.imports():
                import torch

        On the client a missing package is passed over. In a container of this image it raises; in one of
        another image (a file may hold functions with several) it is passed over too.
        """
        try:
            yield
        except Exception as error:
            if self._runs_here():
                raise
            if not isinstance(error, ImportError):
                warnings.warn(f"passed over in `with image.imports()`: {error!r}", stacklevel=3)

    @property
    def recipe_id(self) -> str:
        """Names the definition, equal wherever the program runs; LORRY_IMAGE_RECIPE in a container."""
        return hashlib.sha256(repr(self._recipe).encode()).hexdigest()[:32]

    def spec(self, file_digest: Callable[[Path], str]) -> ImageSpec:
        """The image as data. Reads local files now; `file_digest` hashes one, and may note it for upload.

        Raises InvalidError for a file or module that is not there.
        """
        recipe = self._recipe
        base = recipe.final_base
        rooted = base in (ImageBase.DEBIAN_ROOT, ImageBase.OCI_ARCHIVE)
        copied = [step.added for step in recipe.steps if step.added is not None]
        # Above the host's /usr nothing is copied: such files are shown like the others.
        shown = recipe.added if rooted else (*copied, *recipe.added)
        archive = str(Path(recipe.archive).expanduser().absolute()) if recipe.archive else ""
        version = recipe.python_version
        if base is ImageBase.DEBIAN_ROOT and not version:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return ImageSpec(
            base=base,
            python=executable(),
            installs=tuple(layer.install() for layer in recipe.layers),
            env=recipe.env,
            workdir=recipe.workdir,
            files=placed_files(shown, file_digest),
            python_version=version,
            archive=archive,
            archive_digest=check.archive_digest(archive) if archive else "",
            steps=tuple(step.built(file_digest) for step in recipe.steps) if rooted else (),
        )

    @property
    def build_secrets(self) -> tuple[Secret, ...]:
        """What its steps need; looked up before `spec`."""
        return tuple(secret for step in self._recipe.steps for secret in step.secrets)

    def __repr__(self) -> str:
        return f"Image.{self._recipe.base.value}() [{self.recipe_id[:8]}]"

    def _runs_here(self) -> bool:
        if "LORRY_CONTAINER_ID" not in os.environ:
            return False
        return os.environ.get("LORRY_IMAGE_RECIPE", self.recipe_id) == self.recipe_id

    def _but(self, **changes: Any) -> Image:
        return Image._of(replace(self._recipe, **changes))

    def _with(self, *added: Added, copy: bool) -> Image:
        if not copy:
            return self._but(added=(*self._recipe.added, *added))
        steps = (Step(kind=StepKind.FILES, added=one) for one in added)
        return self._but(steps=(*self._recipe.steps, *steps))

    def _with_step(self, method: str, step: Step) -> Image:
        if self._recipe.base is ImageBase.HOST:
            raise InvalidError(
                f"Image.host() is your own machine, on which Lorry installs nothing. Use "
                f"Image.debian_slim().{method}(...), which has a root file system of its own."
            )
        return self._but(steps=(*self._recipe.steps, step))

    def _with_layer(
        self,
        method: str,
        packages: tuple[str, ...],
        requirements: tuple[str, ...],
        options: PipInstall,
        project: Project | None = None,
    ) -> Image:
        if self._recipe.base is ImageBase.HOST:
            raise InvalidError(
                f"Image.host() is your own Python environment, into which Lorry installs nothing. Use "
                f"Image.debian_slim().{method}(...), or install the packages yourself."
            )
        if not packages and not requirements and project is None:
            return self
        for package in packages:
            check_package(method, package)
        layer = _Layer(packages=packages, requirements=requirements, options=options, project=project)
        step = Step(kind=StepKind.PIP, install=len(self._recipe.layers))
        return self._but(layers=(*self._recipe.layers, layer), steps=(*self._recipe.steps, step))
