"""Image recipe in, environment on disk out: each digest is built once, whoever asks and however often."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorry.clock import Clock, SystemClock
from lorry.errors import ImageBuildError, InvalidError
from lorry.ids import new_id
from lorry.images.build_log import BuildLog
from lorry.images.credentials import lines_to_hide
from lorry.images.digest import environment_digest
from lorry.images.disk import disk_use, sync_file_system
from lorry.images.environment import EnvironmentBuild, UvTool
from lorry.images.failure import DISK_FULL
from lorry.images.indexes import IndexSettings
from lorry.images.interpreter import Interpreter, Interpreters
from lorry.images.layers import LayerStore, StoredLayer, remove_own
from lorry.images.lock import exclusive, if_free
from lorry.images.recipe import layer_secrets
from lorry.images.rooted import PATH, TARGET, BuildInputs, RootedBuild, RootTools
from lorry.images.rooted_digest import rooted_digest
from lorry.images.runner import BuildRunner, RootCommand, RootRunner
from lorry.images.shared import Log, SharedBuild
from lorry.images.shelf import Shelf, StoredImage
from lorry.model.image import ImageBase, ImageSpec

_CACHE_LOCK_SECONDS = "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    digest: str
    python: str
    """The executable to run."""
    prefix: str | None
    """The environment's folder, to be mounted read-only at its own path; None: no more than base_prefix."""
    base_prefix: str
    """The Python installation behind it, to be mounted likewise."""
    cached: bool
    build_seconds: float
    """What building took just now; 0 for a cached image."""
    layers: tuple[str, ...] = ()
    """Host folders, topmost first, of a root file system of its own; then `python` is a path in there, `prefix` is
    None and `base_prefix` empty."""
    env: tuple[tuple[str, str], ...] = ()
    """What the image itself sets."""
    workdir: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUse:
    """Bytes. Images and cache share files by hard links; `total` counts each file once."""

    images: dict[str, int]
    cache: int
    total: int


class ImageBuilder:
    """Several builders, in one process or many, may share a `root`."""

    def __init__(self, root: Path, runner: BuildRunner, uv: str | Path, *, clock: Clock | None = None) -> None:
        self._shelf = Shelf(root)
        self._clock = clock or SystemClock()
        search_path = os.environ.get("PATH", os.defpath)  # compilers and git for packages without a wheel
        self._tool = UvTool(runner=runner, uv=str(uv), shelf=self._shelf, search_path=search_path)
        self._interpreters = Interpreters(runner)
        self._runner = runner
        self._inputs: BuildInputs | None = None
        self._layers = LayerStore(root, self._remove)
        self._builds: dict[str, SharedBuild[BuiltImage]] = {}
        self._swept = False

    async def digest(self, spec: ImageSpec) -> str:
        """Its name, built or not."""
        if spec.rooted:
            return rooted_digest(spec)
        return environment_digest(spec, await self._interpreters.ask(spec.python))

    async def ensure(self, spec: ImageSpec, settings: IndexSettings, log: Log) -> BuiltImage:
        """The environment of `spec`, built if it is not there. Raises ImageBuildError with the log's tail.

        `log` gets the build's lines, without credentials, while it runs. `settings` are for building only: an
        image that exists is taken whatever index it came from.
        """
        interpreter = None if spec.rooted else await self._interpreters.ask(spec.python)
        digest = rooted_digest(spec) if interpreter is None else environment_digest(spec, interpreter)
        if interpreter is not None and spec.base is ImageBase.HOST:
            return _host_image(spec, interpreter, digest)
        await self._first_use()
        if digest not in self._builds:
            if built := self._finished(digest):
                return built
            self._builds[digest] = self._start(digest, spec, interpreter, settings)
        return await self._builds[digest].wait(log)

    async def sweep(self) -> None:
        """Removes what killed builders left behind. Called by itself before the first build."""
        await asyncio.to_thread(self._shelf.prepare)
        await asyncio.to_thread(self._shelf.sweep)
        self._layers.prepare()
        await self._layers.sweep()
        self._swept = True

    async def list(self) -> Sequence[StoredImage]:
        await self._first_use()
        return await asyncio.to_thread(self._shelf.find_all)

    async def sizes(self) -> DiskUse:
        images = await self.list()
        cache = await asyncio.to_thread(disk_use, self._shelf.cache)
        total = await asyncio.to_thread(disk_use, self._shelf.uv)
        total += sum(layer.size for layer in await asyncio.to_thread(self._layers.find_all))
        return DiskUse(images={image.digest: image.size for image in images}, cache=cache, total=total)

    async def layers(self) -> Sequence[StoredLayer]:
        await self._first_use()
        return await asyncio.to_thread(self._layers.find_all)

    async def prune(self, keep: set[str], older_than: float) -> Sequence[StoredImage]:
        """Removes images unused for `older_than` seconds, and from uv's cache what no image needs any more.

        `keep`: digests in use, and of every deployment that may start a container. Returns what was removed.
        """
        before = self._clock.wall() - older_than
        removed: list[StoredImage] = []
        for image in await self.list():
            if image.digest not in keep and image.last_used < before and image.digest not in self._builds:
                removed += await asyncio.to_thread(self._drop, image, before)
        await self._layers.collect(self._needed_layers, before)
        await asyncio.to_thread(self._shelf.drop_old_logs, before)
        if not self._builds:  # uv would wait for the end of every running install
            await self._prune_cache(removed)
        return removed

    async def _first_use(self) -> None:
        if not self._swept:
            await self.sweep()

    def _needed_layers(self) -> set[str]:
        return {layer for image in self._shelf.find_all() for layer in image.layers}

    def _finished(self, digest: str) -> BuiltImage | None:
        """None too while somebody builds or prunes it: under its lock its last use is noted, and looked at."""
        with if_free(self._shelf.lock(digest)) as free:
            stored = self._shelf.find(digest) if free else None
            return self._taken(stored) if stored else None

    def _taken(self, stored: StoredImage) -> BuiltImage:
        self._shelf.touch(stored.digest, self._clock.wall())
        return self._built(stored, cached=True)

    def _built(self, stored: StoredImage, *, cached: bool) -> BuiltImage:
        if stored.layers:
            return BuiltImage(
                digest=stored.digest,
                python=stored.python,
                prefix=None,
                base_prefix="",
                cached=cached,
                build_seconds=0.0 if cached else stored.build_seconds,
                layers=tuple(str(self._layers.path(digest)) for digest in reversed(stored.layers)),
                env=tuple(stored.env.items()),
                workdir=stored.workdir,
            )
        environment = self._shelf.environment(stored)
        return BuiltImage(
            digest=stored.digest,
            python=str(environment / "bin" / "python"),
            prefix=str(environment),
            base_prefix=stored.base_prefix,
            cached=cached,
            build_seconds=0.0 if cached else stored.build_seconds,
        )

    def _start(
        self, digest: str, spec: ImageSpec, interpreter: Interpreter | None, settings: IndexSettings
    ) -> SharedBuild[BuiltImage]:
        def forget() -> None:
            if self._builds.get(digest) is build:
                del self._builds[digest]

        async def make(emit: Log) -> BuiltImage:
            try:
                return await self._build_alone(digest, spec, interpreter, settings, emit)
            finally:
                forget()

        build = SharedBuild(make, abandoned=forget)
        return build

    async def _build_alone(
        self, digest: str, spec: ImageSpec, interpreter: Interpreter | None, settings: IndexSettings, emit: Log
    ) -> BuiltImage:
        """Under the digest's lock, so that another process builds the same image at most before or after."""

        def on_wait() -> None:
            emit("waiting for another process that builds the same image")

        async with exclusive(self._shelf.lock(digest), on_wait):
            if stored := self._shelf.find(digest):
                return self._taken(stored)
            await asyncio.to_thread(self._shelf.sweep_digest, digest)
            secrets = (*settings.secrets, *layer_secrets(spec), *self._step_secrets(spec))
            output = BuildLog(self._shelf.logs / f"{digest}.log", secrets, emit)
            try:
                if interpreter is None:
                    return await self._build_rooted(digest, spec, settings, output)
                build = self._prepare(digest, spec, interpreter, settings, output)
                return await self._build(digest, build)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ImageBuildError(f"The image could not be stored: {error.strerror}. {DISK_FULL}") from None
            finally:
                output.close()

    def supply(self, inputs: BuildInputs) -> None:
        """What images with a root file system of their own are built from besides the recipe."""
        self._inputs = inputs

    def _step_secrets(self, spec: ImageSpec) -> tuple[str, ...]:
        wanted = [secret for step in spec.steps for secret in step.secret_ids]
        return lines_to_hide(self._inputs.secrets(wanted).values()) if wanted and self._inputs else ()

    async def _build_rooted(
        self, digest: str, spec: ImageSpec, settings: IndexSettings, output: BuildLog
    ) -> BuiltImage:
        started = self._clock.monotonic()
        build = RootedBuild(self._root_tools(), spec, settings, output.emit, output.redact)
        async with self._layers.in_use():
            result = await build.run()
            stored = StoredImage(
                digest=digest,
                folder="",
                base_prefix="",
                packages={},
                size=result.size,
                created=self._clock.wall(),
                build_seconds=self._clock.monotonic() - started,
                layers=result.layers,
                python=result.python,
                env=dict(result.env),
                workdir=result.workdir,
            )
            await asyncio.to_thread(self._shelf.publish, stored)
        return self._built(stored, cached=False)

    def _root_tools(self) -> RootTools:
        if self._inputs is None or not isinstance(self._runner, RootRunner):
            raise ImageBuildError(
                "this image needs a root file system of its own, which the sandbox tier of this server cannot make: "
                "it takes the tier `namespaces`; `lorry doctor` says what is in the way. Without it, "
                "Image.debian_slim() with uv_pip_install alone works."
            )
        self._layers.cache.mkdir(exist_ok=True)
        return RootTools(
            runner=self._runner,
            store=self._layers,
            inputs=self._inputs,
            uv=self._tool.uv,
            root=self._shelf.root,
            clock=self._clock,
        )

    async def _remove(self, folder: Path) -> None:
        """A layer. An ordinary user's build gave files to other ids, and only such a namespace can remove them."""
        if await asyncio.to_thread(remove_own, folder) or not isinstance(self._runner, RootRunner):
            return
        inside = f"{TARGET}/{folder.name}"
        command = RootCommand(argv=("rm", "-rf", inside), env={"PATH": PATH}, writable=((str(folder.parent), TARGET),))
        await self._runner.run_in_root(command, _ignore)

    def _prepare(
        self,
        digest: str,
        spec: ImageSpec,
        interpreter: Interpreter,
        settings: IndexSettings,
        output: BuildLog,
    ) -> EnvironmentBuild:
        return EnvironmentBuild(
            tool=self._tool,
            name=self._shelf.new_attempt(digest, new_id("b")[2:10]),
            spec=spec,
            interpreter=interpreter,
            settings=settings,
            emit=output.emit,
            redact=output.redact,
        )

    async def _build(self, digest: str, build: EnvironmentBuild) -> BuiltImage:
        started = self._clock.monotonic()
        try:
            packages, size = await build.run()
            await asyncio.to_thread(sync_file_system, self._shelf.root)
            stored = StoredImage(
                digest=digest,
                folder=build.name,
                base_prefix=build.interpreter.base_prefix,
                packages=packages,
                size=size,
                created=self._clock.wall(),
                build_seconds=self._clock.monotonic() - started,
            )
            await asyncio.to_thread(self._shelf.publish, stored)
        except BaseException:
            await asyncio.to_thread(self._shelf.sweep_digest, digest)
            raise
        self._shelf.drop_recipe(build.name)
        return self._built(stored, cached=False)

    def _drop(self, image: StoredImage, before: float) -> Sequence[StoredImage]:
        """Looks again under the lock: somebody may have taken or rebuilt it since it was listed."""
        with if_free(self._shelf.lock(image.digest)) as free:
            current = self._shelf.find(image.digest) if free else None
            if current is None or current.last_used >= before:
                return []
            self._shelf.drop_image(current)
            return [current]

    async def _prune_cache(self, removed: Sequence[StoredImage]) -> None:
        """A failure (somebody else installs right now) only leaves more for the next time."""
        needed = {name for image in await self.list() for name in image.packages}
        unneeded = sorted({name for image in removed for name in image.packages} - needed)
        env = {"UV_LOCK_TIMEOUT": _CACHE_LOCK_SECONDS}
        if unneeded:
            await self._tool.run(["cache", "clean", *unneeded], env, (), _ignore)
        await self._tool.run(["cache", "prune"], env, (), _ignore)


def _host_image(spec: ImageSpec, interpreter: Interpreter, digest: str) -> BuiltImage:
    if spec.installs:
        raise InvalidError("Nothing is installed into Image.host(), your own environment: use debian_slim().")
    own = interpreter.prefix != interpreter.base_prefix
    return BuiltImage(
        digest=digest,
        python=spec.python,
        prefix=interpreter.prefix if own else None,
        base_prefix=interpreter.base_prefix,
        cached=True,
        build_seconds=0.0,
    )


def _ignore(line: str) -> None:
    return None
