"""Steps of an image with a root file system of its own, as the program writes them, and their form for the server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorry.errors import InvalidError
from lorry.model.function import NAMED_SECRET
from lorry.model.image import BuildStep, ImageFile, StepKind
from lorry.sdk import image_arguments as check
from lorry.sdk.image_function import content_key, pickled
from lorry.sdk.local_files import AddedDir, AddedFile, AddedModule
from lorry.sdk.requirements import locked_text
from lorry.sdk.secret import Secret

Added = AddedFile | AddedDir | AddedModule
Digest = Callable[[Path], str]
NEEDS_ROOT = (StepKind.APT, StepKind.COMMANDS, StepKind.FUNCTION)
"""Files and Python packages alone fit above the host's /usr too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    kind: StepKind
    words: tuple[str, ...] = ()
    install: int = 0
    added: Added | None = None
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    secrets: tuple[Secret, ...] = ()
    force: str = ""
    """Different in each process when the step must always be built."""

    def __repr__(self) -> str:
        """Equal wherever the program runs: see `Image.recipe_id`."""
        function = self.function.__qualname__ if self.function else ""
        names = [secret.name or "" for secret in self.secrets]
        return f"{self.kind}{self.words}{self.install}{self.added}{function}{self.env}{self.workdir}{names}"

    def built(self, file_digest: Digest) -> BuildStep:
        """Reads local files now. `secrets` were looked up before."""
        return BuildStep(
            kind=self.kind,
            words=(*self.words, *([f"# {self.force}"] if self.force else ())),
            install=self.install,
            files=placed_files([self.added], file_digest) if self.added else (),
            key=self._key(),
            payload=self._payload(file_digest),
            env=self.env,
            workdir=self.workdir,
            secret_ids=tuple(map(_secret_id, self.secrets)),
        )

    def _key(self) -> str:
        if self.function is None:
            return ""
        return content_key(self.function, self.args, dict(self.kwargs)) + self.force

    def _payload(self, file_digest: Digest) -> str:
        if self.function is None:
            return ""
        data = pickled(self.function, self.args, dict(self.kwargs))
        path = Path(tempfile.mkdtemp(prefix="lorry-"), "function")
        _temporary.append(path.parent)
        path.write_bytes(data)
        return file_digest(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder with pyproject.toml and uv.lock."""

    folder: str
    groups: tuple[str, ...]
    extras: tuple[str, ...]
    frozen: bool

    def requirements(self) -> str:
        """What it has locked, with hashes, without the project itself, whose source is shipped."""
        path = Path(self.folder).expanduser()
        if not (path / "pyproject.toml").is_file():
            raise InvalidError(f"Image.uv_sync: there is no pyproject.toml in {str(path.absolute())!r}.")
        if self.frozen and not (path / "uv.lock").is_file():
            raise InvalidError(
                f"Image.uv_sync: there is no uv.lock in {str(path.absolute())!r}. `uv lock` makes one; "
                "frozen=False does too."
            )
        words = ["export", "--quiet", "--no-header", "--no-emit-workspace", "--format", "requirements-txt"]
        words += ["--frozen"] if self.frozen else []
        words += [word for group in self.groups for word in ("--group", group)]
        words += [word for extra in self.extras for word in ("--extra", extra)]
        environ = {**os.environ, "NO_COLOR": "1"}
        done = subprocess.run([_uv(), *words], cwd=path, capture_output=True, text=True, env=environ, check=False)
        if done.returncode:
            raise InvalidError(f"Image.uv_sync: `uv {' '.join(words)}` failed in {path}:\n{done.stderr.strip()}")
        return locked_text(done.stdout, path, "Image.uv_sync")


_temporary: list[Path] = []
"""Folders of pickled functions on their way to the server."""


def remove_temporary() -> None:
    while _temporary:
        shutil.rmtree(_temporary.pop(), ignore_errors=True)


def placed_files(added: Sequence[Added], file_digest: Digest) -> tuple[ImageFile, ...]:
    """In order of their path in the container. Raises InvalidError for a file or module that is not there."""
    placed: dict[str, Path] = {}
    for one in added:
        placed.update(one.files())
    check.check_nesting(placed)
    return tuple(
        ImageFile(path=path, digest=file_digest(placed[path]), mode=check.file_mode(placed[path]))
        for path in sorted(placed)
    )


def _secret_id(secret: Secret) -> str:
    assert secret.name is not None or secret.object_id is not None, "looked up before"
    return secret.object_id or "" if secret.name is None else NAMED_SECRET + secret.name


def check_secrets(method: str, secrets: object) -> tuple[Secret, ...]:
    if not isinstance(secrets, (list, tuple)) or not all(isinstance(secret, Secret) for secret in secrets):
        raise InvalidError(f"Image.{method}: secrets is a list of Secrets, such as [lorry.Secret.from_name('hub')].")
    return tuple(secrets)


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise InvalidError("Image.uv_sync: the program uv is not there. `pip install uv` installs it.")
    return found


def merged(env: tuple[tuple[str, str], ...], more: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return tuple({**dict(env), **check.environment(more or {})}.items())
