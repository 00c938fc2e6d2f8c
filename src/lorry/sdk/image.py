"""What a function's containers have: Python packages, environment, files, working directory."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lorry.errors import InvalidError
from lorry.model.image import ImageBase, ImageFile, ImageSpec, PipInstall
from lorry.sdk import image_arguments as check
from lorry.sdk.file_pattern_matcher import NON_PYTHON_FILES, as_matcher
from lorry.sdk.image_later import LaterImageMethods
from lorry.sdk.local_files import AddedDir, AddedFile, AddedModule
from lorry.sdk.python_path import executable
from lorry.sdk.requirements import check_package, requirements_text, resolved_package

Ignore = str | Sequence[str] | Callable[[Path], bool]
Strings = check.Strings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    packages: tuple[str, ...]
    requirements: tuple[str, ...]
    options: PipInstall
    """Everything but the packages."""

    def install(self) -> PipInstall:
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
    added: tuple[AddedFile | AddedDir | AddedModule, ...] = ()


class Image(LaterImageMethods):
    """Immutable: each method returns a new image. Nothing is read or built before the app starts.

    image = lorry.Image.debian_slim().uv_pip_install("torch", "transformers").env({"HF_HUB_OFFLINE": "1"})
    """

    __slots__ = ("_recipe",)
    _recipe: _Recipe

    def __init__(self) -> None:
        """Use `Image.debian_slim()` or `Image.host()`."""
        raise InvalidError("Image() is not called: begin with Image.debian_slim() or Image.host().")

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
        """The client's Python with an environment of its own, empty at first."""
        check.check_python(python_version)
        return Image._of(_Recipe(base=ImageBase.DEBIAN_SLIM))

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
        extra_options: str = "",
    ) -> Image:
        """Adds packages and the contents of requirements files, resolved together, by uv's rules."""
        method = "uv_pip_install"
        options = check.pip_options(method, find_links, index_url, extra_index_url, pre, extra_options)
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
        extra_options: str = "",
    ) -> Image:
        """Adds what a requirements file names, files that it includes with `-r` too."""
        method = "pip_install_from_requirements"
        options = check.pip_options(method, find_links, index_url, extra_index_url, pre, extra_options)
        files = check.paths(method, "requirements_txt", [requirements_txt])
        return self._with_layer(method, (), files, check.all_indexes(options))

    def env(self, vars: Mapping[str, str]) -> Image:
        """Sets environment variables of the containers; a later value wins."""
        return self._but(env=tuple({**dict(self._recipe.env), **check.environment(vars)}.items()))

    def workdir(self, path: str | PurePosixPath) -> Image:
        """Sets the folder that the function starts in."""
        return self._but(workdir=check.container_path("workdir", path))

    def add_local_file(self, local_path: str | Path, remote_path: str | PurePosixPath, *, copy: bool = False) -> Image:
        """Shows a file at `remote_path`, or in it under its own name if that ends with a slash.

        `copy` is accepted for Modal programs: files are shown from a store by content either way, and later
        steps may follow in any order.
        """
        (local,) = check.paths("add_local_file", "local_path", [local_path])
        remote = check.container_path("add_local_file", remote_path, keep_slash=True)
        return self._with(AddedFile(local=local, remote=remote))

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
        return self._with(AddedDir(local=local, remote=remote, ignore=as_matcher(ignore)))

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore = NON_PYTHON_FILES) -> Image:
        """Makes modules and packages that can be imported here importable there; only .py by default."""
        names = check.strings("add_local_python_source", "modules", modules)
        for name in names:
            if not all(part.isidentifier() for part in name.split(".")):
                raise InvalidError(f"add_local_python_source: {name!r} is not a module name such as 'mylib'.")
        matcher = as_matcher(ignore)
        return self._with(*(AddedModule(module=name, ignore=matcher) for name in names))

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
        placed: dict[str, Path] = {}
        for added in recipe.added:
            placed.update(added.files())
        check.check_nesting(placed)
        return ImageSpec(
            base=recipe.base,
            python=executable(),
            installs=tuple(layer.install() for layer in recipe.layers),
            env=recipe.env,
            workdir=recipe.workdir,
            files=tuple(
                ImageFile(path=path, digest=file_digest(placed[path]), mode=check.file_mode(placed[path]))
                for path in sorted(placed)
            ),
        )

    def __repr__(self) -> str:
        return f"Image.{self._recipe.base.value}() [{self.recipe_id[:8]}]"

    def _runs_here(self) -> bool:
        if "LORRY_CONTAINER_ID" not in os.environ:
            return False
        return os.environ.get("LORRY_IMAGE_RECIPE", self.recipe_id) == self.recipe_id

    def _but(self, **changes: Any) -> Image:
        return Image._of(replace(self._recipe, **changes))

    def _with(self, *added: AddedFile | AddedDir | AddedModule) -> Image:
        return self._but(added=(*self._recipe.added, *added))

    def _with_layer(
        self, method: str, packages: tuple[str, ...], requirements: tuple[str, ...], options: PipInstall
    ) -> Image:
        if self._recipe.base is ImageBase.HOST:
            raise InvalidError(
                f"Image.host() is your own Python environment, into which Lorry installs nothing. Use "
                f"Image.debian_slim().{method}(...), or install the packages yourself."
            )
        if not packages and not requirements:
            return self
        for package in packages:
            check_package(method, package)
        layer = _Layer(packages=packages, requirements=requirements, options=options)
        return self._but(layers=(*self._recipe.layers, layer))
