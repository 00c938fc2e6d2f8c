"""What kind of Python an environment is made for, asked of the interpreter itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass

from lorry.errors import ImageBuildError
from lorry.images.runner import BuildRunner

_MARK = "lorry-interpreter:"
_PROBE = f"""
import json, os, platform, site, sys, sysconfig
try:
    release = platform.freedesktop_os_release()
except OSError:
    release = {{}}
print({_MARK!r} + json.dumps(dict(
    implementation=sys.implementation.name,
    version=platform.python_version(),
    abi=str(sysconfig.get_config_var("SOABI")),
    platform=sysconfig.get_platform(),
    libc=" ".join(platform.libc_ver()),
    system=release.get("ID", platform.system()) + " " + release.get("VERSION_ID", platform.release()),
    base_executable=os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
    prefix=sys.prefix,
    base_prefix=sys.base_prefix,
    site_packages=site.getsitepackages(),
)))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    implementation: str
    version: str
    abi: str
    platform: str
    libc: str
    system: str
    """Distribution and release: a wheel built from source is linked against this system's libraries."""
    base_executable: str
    prefix: str
    base_prefix: str
    site_packages: tuple[str, ...]

    def identity(self) -> dict[str, object]:
        """What decides whether an environment made for it can be shared. Two venvs of one Python are one."""
        facts = asdict(self)
        del facts["prefix"], facts["site_packages"]
        return facts

    def environment_stamp(self) -> tuple[str, ...]:
        """Changes whenever a package is installed into or removed from the interpreter's own environment."""
        return tuple(f"{path}@{_modified(path)}" for path in self.site_packages)


class Interpreters:
    """Asks each interpreter once, and again when its file or its venv's pyvenv.cfg changed."""

    def __init__(self, runner: BuildRunner) -> None:
        self._runner = runner
        self._known: dict[tuple[object, ...], Interpreter] = {}

    async def ask(self, python: str) -> Interpreter:
        """Raises ImageBuildError when `python` is not there or does not run."""
        key = (python, os.path.realpath(python), _modified(python), _modified(_venv_config(python)))
        if key not in self._known:
            self._known[key] = await self._probe(python)
        return self._known[key]

    async def _probe(self, python: str) -> Interpreter:
        if not (os.path.isabs(python) and os.access(python, os.X_OK)):
            raise ImageBuildError(
                f"The Python interpreter {python!r} of the client is not there or cannot be run. Was its "
                "virtual environment deleted or moved? Run the program with a Python that exists."
            )
        lines: list[str] = []
        status = await self._run(python, lines.append)
        answers = [line for line in lines if line.startswith(_MARK)]
        if status or not answers:
            raise ImageBuildError(f"{python} does not run (exit status {status}):\n" + "\n".join(lines[-20:]))
        facts = json.loads(answers[-1].removeprefix(_MARK))
        return Interpreter(**{**facts, "site_packages": tuple(facts["site_packages"])})

    async def _run(self, python: str, on_line: Callable[[str], None]) -> int:
        folders = {_prefix_of(python), _prefix_of(os.path.realpath(python))}
        return await self._runner.run(
            [python, "-I", "-B", "-c", _PROBE], {"LANG": "C.UTF-8"}, (), tuple(sorted(folders)), on_line
        )


def _prefix_of(executable: str) -> str:
    return os.path.dirname(os.path.dirname(executable))


def _venv_config(python: str) -> str:
    return os.path.join(_prefix_of(python), "pyvenv.cfg")


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
