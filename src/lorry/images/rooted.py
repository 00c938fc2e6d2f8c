"""Building an image that has a root file system of its own: the root, then a layer for each step.

Each layer is made in a throw-away sandbox on an overlay of the layers below; what was written becomes the layer. A
layer is named by its parent and its step, so images share those that they have in common.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorry.clock import Clock
from lorry.errors import ImageBuildError
from lorry.ids import new_id
from lorry.images.archive import read_archive
from lorry.images.debian import RELEASES, apt_script, bootstrap_command, machine_mirror, proxies, release_for
from lorry.images.disk import sync_file_system
from lorry.images.failure import LogTail, build_error
from lorry.images.indexes import IndexSettings
from lorry.images.layers import LayerStore, StoredLayer, settle
from lorry.images.lock import exclusive
from lorry.images.recipe import layer_command, summary
from lorry.images.rooted_digest import base_content, layer_digest, step_content
from lorry.images.runner import RootCommand, RootRunner
from lorry.model.image import BuildStep, ImageBase, ImageFile, ImageSpec, StepKind

LIBRARY = Path(__file__).resolve().parents[1]
"""The package `lorry`."""
INNER = "/run/build"
"""Where a build finds what is mounted for it. /run is no part of any layer."""
TARGET = "/mnt"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHONS = ((3, 11), (3, 14))
"""Oldest and newest that containers can use."""
PYTHON_FOLDER = "/opt/python"
_MARK = "lorry-python:"
_PROBE = f"import sys; print({_MARK!r}, sys.executable, '%d.%d' % sys.version_info[:2])"
_UNPACK = f"""
import sys
sys.path.append('{INNER}/library')
from lorry.images.unpack import main
sys.exit(main(sys.argv[1:]))
"""
_NOISE = re.compile(r"\(Reading database \.\.\.(?: \d+%)?")
"""dpkg redraws this line."""
_WAYS = (
    "run the server as root, give your user subordinate ids (`usermod --add-subuids 100000-165535 --add-subgids "
    "100000-165535 NAME`, and the package uidmap), or use Image.debian_slim() with uv_pip_install alone, which needs "
    "neither"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputs:
    """What a build needs of the rest of the server."""

    blob: Callable[[str], Path]
    tree: Callable[[tuple[ImageFile, ...]], Path]
    """A folder that holds these files at their paths."""
    secrets: Callable[[Sequence[str]], Mapping[str, str]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RootTools:
    runner: RootRunner
    store: LayerStore
    inputs: BuildInputs
    uv: str
    root: Path
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class RootedResult:
    layers: tuple[str, ...]
    """Digests, lowest first."""
    python: str
    """Path in the image."""
    env: tuple[tuple[str, str], ...]
    workdir: str
    size: int


Run = Callable[[Path], Awaitable[None]]
"""Fills the folder of an attempt."""


class RootedBuild:
    """One image. `emit` gets lines that may still hold credentials; the caller redacts."""

    def __init__(
        self,
        tools: RootTools,
        spec: ImageSpec,
        settings: IndexSettings,
        emit: Callable[[str], None],
        redact: Callable[[str], str],
    ) -> None:
        self._tools = tools
        self._spec = spec
        self._settings = settings
        self._emit = emit
        self._redact = redact
        self._layers: list[StoredLayer] = []
        self._env: dict[str, str] = {}
        self._workdir = ""
        self._python = ""

    async def run(self) -> RootedResult:
        """Raises ImageBuildError. The caller sees to it that no layer is collected meanwhile."""
        if reason := self._tools.runner.no_roots():
            raise ImageBuildError(
                f"this image needs a root file system of its own, which cannot be built here: {reason}. Ways: {_WAYS}."
            )
        await self._base()
        await self._find_python()
        for number, step in enumerate(self._spec.steps, 1):
            await self._step(number, step)
        return RootedResult(
            layers=tuple(layer.digest for layer in self._layers),
            python=self._python,
            env=tuple(sorted(self._env.items())),
            workdir=self._workdir,
            size=sum(layer.size for layer in self._layers),
        )

    # Layers

    async def _layer(self, title: str, content: object, fill: Run) -> None:
        """The layer above those so far: taken, or made by `fill`."""
        store = self._tools.store
        digest = layer_digest(self._layers[-1].digest if self._layers else "", content)
        async with exclusive(store.lock(digest), lambda: self._emit(f"waiting for another build of {title}")):
            stored = store.find(digest)
            if stored is None:
                self._emit(title)
                stored = await self._made(digest, title, fill)
            self._layers.append(stored)

    async def _made(self, digest: str, title: str, fill: Run) -> StoredLayer:
        store, clock = self._tools.store, self._tools.clock
        started = clock.monotonic()
        await store.drop_attempts(digest)
        attempt = store.new_attempt(digest, new_id("b")[2:10])
        try:
            await self._tools.runner.own(str(attempt / "upper"))
            await fill(attempt)
            size, files = await asyncio.to_thread(settle, attempt / "upper")
            await asyncio.to_thread(sync_file_system, self._tools.root)
            seconds = clock.monotonic() - started
            layer = StoredLayer(
                digest=digest,
                title=title,
                size=size,
                files=files,
                created=clock.wall(),
                build_seconds=seconds,
            )
            await store.publish(layer, attempt)
            return layer
        finally:
            await store.drop_attempts(digest)

    # The root file system

    async def _base(self) -> None:
        content = base_content(self._spec)
        if self._spec.base is ImageBase.DEBIAN_ROOT:
            release = release_for(self._spec.python_version)
            await self._layer(f"the root file system of Debian {release}", content, self._bootstrap)
            return
        archive = await asyncio.to_thread(read_archive, self._spec.archive)
        if archive.digest != self._spec.archive_digest:
            raise ImageBuildError(f"{self._spec.archive} has changed since the program started: run it again.")
        if os.geteuid() == 0 and not os.stat(self._spec.archive).st_mode & stat.S_IROTH:
            raise ImageBuildError(
                f"{self._spec.archive} is unpacked by a user without rights, who may not read it: "
                f"`chmod a+r {self._spec.archive}`."
            )
        self._env, self._workdir = dict(archive.env), archive.workdir
        await self._layer(f"the layers of {self._spec.archive}", content, self._unpack)

    async def _bootstrap(self, attempt: Path) -> None:
        if not os.path.exists("/usr/bin/mmdebstrap"):
            raise ImageBuildError(
                "a Debian root file system is made by mmdebstrap, which is not installed here: "
                "`apt-get install mmdebstrap` (Fedora: dnf install mmdebstrap), or begin with a local image archive: "
                "Image.from_oci_archive(path)."
            )
        mirror = machine_mirror()
        release = release_for(self._spec.python_version)
        keyring = mirror.keyring
        if not os.path.exists(keyring):
            raise ImageBuildError(f"Debian's keys are missing here ({keyring}): install debian-archive-keyring.")
        command = RootCommand(
            argv=bootstrap_command(release, mirror, TARGET),
            env={"PATH": PATH, "LANG": "C.UTF-8", "TMPDIR": "/tmp", **proxies(self._settings.env)},  # noqa: S108
            writable=((str(attempt / "upper"), TARGET),),
            readable=((keyring, keyring),),
        )
        await self._run(f"making the root of Debian {release}", "mmdebstrap", command)
        await self._host_python(attempt, "preparing the root", "prepare", TARGET)

    async def _unpack(self, attempt: Path) -> None:
        archive = f"{INNER}/archive"
        words = ("unpack", archive, self._spec.archive_digest, TARGET)
        await self._host_python(attempt, f"unpacking {self._spec.archive}", *words, archive=archive)

    async def _host_python(self, attempt: Path, title: str, *words: str, archive: str = "") -> None:
        python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        readable = [(sys.base_prefix, sys.base_prefix), (str(LIBRARY), f"{INNER}/library/lorry")]
        if archive:
            readable.append((os.path.realpath(self._spec.archive), archive))
        command = RootCommand(
            argv=(python, "-I", "-S", "-B", "-c", _UNPACK, *words),
            env={"PATH": PATH, "LANG": "C.UTF-8"},
            readable=tuple(readable),
            writable=((str(attempt / "upper"), TARGET),),
        )
        await self._run(title, "unpacking", command)

    # Python

    async def _find_python(self) -> None:
        wanted = self._spec.python_version
        found = await self._probe("python3")
        if wanted and (found is None or found[1] != wanted):
            await self._add_python(wanted, f"Python {wanted}")
            found = await self._probe(f"{PYTHON_FOLDER}/bin/python3")
        elif found is None:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            await self._add_python(version, "the image has no python3, and one")
            found = await self._probe(f"{PYTHON_FOLDER}/bin/python3")
        if found is None:
            raise ImageBuildError(
                "the Python that was added to the image does not run in it; is its C library too old, or musl?"
            )
        self._python, version = found
        if not PYTHONS[0] <= tuple(map(int, version.split("."))) <= PYTHONS[1]:
            raise ImageBuildError(
                f"the image's {self._python} is Python {version}; containers need 3.11 to 3.14. Give "
                'Image.from_oci_archive(..., add_python="3.12"), or an archive with a newer Python.'
            )

    async def _probe(self, python: str) -> tuple[str, str] | None:
        """(path, minor version); None if there is none or it does not run."""
        lines: list[str] = []
        command = self._command((python, "-I", "-c", _PROBE), None)
        try:
            status = await self._tools.runner.run_in_root(command, lines.append)
        except ImageBuildError:
            return None
        words = next((line.split() for line in lines if line.startswith(_MARK)), [])
        return None if status or len(words) != 3 else (words[1], words[2])

    async def _add_python(self, version: str, what: str) -> None:
        async def fill(attempt: Path) -> None:
            script = (
                f"set -e; {INNER}/uv python install {version} --install-dir /opt/pythons\n"
                f"ln -s /opt/pythons/cpython-{version}.*-*/ {PYTHON_FOLDER}\n"
                f"ln -sf {PYTHON_FOLDER}/bin/python3 /usr/local/bin/python3; ln -sf python3 /usr/local/bin/python\n"
            )
            command = self._with_uv(self._command(("/bin/sh", "-c", script), attempt))
            mirror = {name: value for name, value in self._settings.env.items() if name == "UV_PYTHON_INSTALL_MIRROR"}
            env = {**command.env, **mirror, "UV_PYTHON_DOWNLOADS": "automatic"}
            try:
                await self._run(f"adding Python {version}", "uv", replace(command, env=env))
            except ImageBuildError as error:
                own = ", ".join(f"{minor} ({release})" for minor, release in RELEASES.items())
                raise ImageBuildError(
                    f"{what} could not be added: uv could not install Python {version} (it downloads from GitHub, or "
                    f"from UV_PYTHON_INSTALL_MIRROR). Without a download debian_slim has {own}; an archive brings its "
                    f"own when it was made with apt-get install python3.\n{error}"
                ) from None

        await self._layer(f"Python {version}", {"python": version}, fill)

    # Steps

    async def _step(self, number: int, step: BuildStep) -> None:
        title = self._redact(f"step {number} of {len(self._spec.steps)} ({_summary(self._spec, step)})")
        make = {
            StepKind.APT: self._apt,
            StepKind.COMMANDS: self._commands,
            StepKind.PIP: self._pip,
            StepKind.FILES: self._files,
            StepKind.FUNCTION: self._function,
        }[step.kind]

        async def fill(attempt: Path) -> None:
            await make(title, step, attempt)

        await self._layer(title, step_content(self._spec, step), fill)

    async def _apt(self, title: str, step: BuildStep, attempt: Path) -> None:
        command = self._command(("/bin/sh", "-c", apt_script(step.words)), attempt, step)
        env = {**command.env, "DEBIAN_FRONTEND": "noninteractive"}
        await self._run(title, "apt-get", replace(command, env=env))

    async def _commands(self, title: str, step: BuildStep, attempt: Path) -> None:
        """One shell for each command, as a RUN line of a Dockerfile; the first that fails ends the step."""
        script = "set -e\n" + "\n".join(f"/bin/sh -c {shlex.quote(word)}" for word in step.words)
        await self._run(title, "it", self._command(("/bin/sh", "-c", script), attempt, step))

    async def _pip(self, title: str, step: BuildStep, attempt: Path) -> None:
        layer = layer_command(self._spec, step.install, self._settings)
        requirements = attempt / "requirements.txt"
        requirements.write_text(layer.requirements, encoding="utf-8")
        words = ("pip", "install", "--break-system-packages", "--python", self._python, *layer.options)
        argv = (f"{INNER}/uv", *words, "-r", f"{INNER}/requirements.txt")
        command = self._with_uv(self._command(argv, attempt))
        local = [path for path in (*self._settings.readable, *layer.readable) if os.path.exists(path)]
        readable = (*command.readable, (str(requirements), f"{INNER}/requirements.txt"), *((p, p) for p in local))
        await self._run(title, "uv", replace(command, env={**layer.env, **command.env}, readable=readable))

    async def _files(self, title: str, step: BuildStep, attempt: Path) -> None:
        tree = await asyncio.to_thread(self._tools.inputs.tree, step.files)
        await self._inside(title, attempt, step, ("files", f"{INNER}/files"), ((str(tree), f"{INNER}/files"),))

    async def _function(self, title: str, step: BuildStep, attempt: Path) -> None:
        payload = str(self._tools.inputs.blob(step.payload))
        await self._inside(title, attempt, step, ("function", f"{INNER}/payload"), ((payload, f"{INNER}/payload"),))

    async def _inside(
        self, title: str, attempt: Path, step: BuildStep, words: tuple[str, ...], readable: tuple[tuple[str, str], ...]
    ) -> None:
        """Our own program, with the image's Python."""
        program = f"{INNER}/library/lorry/runtime/build_step.py"
        command = self._command((self._python, "-P", "-B", program, *words), attempt, step)
        library = (str(LIBRARY), f"{INNER}/library/lorry")
        await self._run(
            title,
            "the function" if words[0] == "function" else "copying",
            replace(command, readable=(library, *readable)),
        )

    # Commands

    def _command(self, argv: tuple[str, ...], attempt: Path | None, step: BuildStep | None = None) -> RootCommand:
        env = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **proxies(self._settings.env), **self._env}
        if step is not None:
            env.update(step.env)
            env.update(self._tools.inputs.secrets(step.secret_ids))
        store = self._tools.store
        return RootCommand(
            argv=argv,
            env=env,
            cwd=(step.workdir if step else None) or "/",
            lower=tuple(str(store.path(layer.digest)) for layer in reversed(self._layers)),
            upper=str(attempt / "upper") if attempt else "",
            work=str(attempt / "work") if attempt else "",
        )

    def _with_uv(self, command: RootCommand) -> RootCommand:
        env = {
            **command.env,
            "UV_CACHE_DIR": f"{INNER}/cache",
            "UV_LINK_MODE": "copy",
            "UV_NO_CONFIG": "1",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_COMPILE_BYTECODE": "1",
            "NO_COLOR": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }
        readable = (*command.readable, (os.path.realpath(self._tools.uv), f"{INNER}/uv"))
        writable = (*command.writable, (str(self._tools.store.cache), f"{INNER}/cache"))
        return replace(command, env=env, readable=readable, writable=writable)

    async def _run(self, title: str, program: str, command: RootCommand) -> None:
        tail = LogTail()

        def on_line(line: str) -> None:
            if not _NOISE.fullmatch(line):
                tail.add(self._redact(line))
                self._emit(line)

        status = await self._tools.runner.run_in_root(command, on_line)
        if status:
            raise build_error(title, status, tail, program)


def _summary(spec: ImageSpec, step: BuildStep) -> str:
    if step.kind is StepKind.APT:
        text = "apt: " + " ".join(step.words)
    elif step.kind is StepKind.PIP:
        text = "pip: " + summary(spec.installs[step.install])
    elif step.kind is StepKind.FILES:
        text = "files: " + ", ".join(file.path for file in step.files)
    elif step.kind is StepKind.COMMANDS:
        text = "; ".join(step.words)
    else:
        text = "run_function"
    return text if len(text) <= 60 else text[:59] + "…"
