"""Folders of containers and templates. The files of a fork lie in its template's pool; see `lorry.sandbox.records`.

Where the server is an ordinary user, what a module does at its import may replace anything in the pool by a link to a
file of that user. So nothing below is followed that lies there, and which forks there are is not asked there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from lorry.sandbox.cgroups import remove_blocking
from lorry.sandbox.interface import Sandbox, SandboxProcess
from lorry.sandbox.records import FORKED, read_group

POOL_NAME = "pool"
"""Folder of a template with the files of its forks: all that it sees of the machine's state."""
FORKS = "forks"
"""Folder of a template with an empty file per container that it has forked."""
PROCESS = "process"
"""File of a template: the process that ends it all, for the next worker."""


def make_template_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / POOL_NAME).mkdir(mode=0o711)
    (folder / FORKS).mkdir()


def forks_in(template: Path) -> list[str]:
    """The containers that it has forked and that are not buried."""
    with suppress(FileNotFoundError):
        return os.listdir(template / FORKS)
    return []


def move_into(template: Path, folder: Path) -> None:
    """What a container's template must see of its folder."""
    (template / FORKS / folder.name).touch()
    files = template / POOL_NAME / folder.name
    (folder / FORKED).rename(files)
    (folder / FORKED).symlink_to(files)


def take_back(folder: Path) -> None:
    """For a cold start after a fork that failed: should that come after all, it does not find its files any more."""
    files, template = folder / FORKED, template_of(folder)
    if template is not None:
        moved = files.readlink()
        files.unlink()
        _remove_tree(moved)
        (template / FORKS / folder.name).unlink(missing_ok=True)
    _remove_tree(files)
    (folder / "cgroup").unlink(missing_ok=True)


def template_of(folder: Path) -> Path | None:
    """The folder of the template that forked this container; None if none did."""
    files = folder / FORKED
    return files.readlink().parent.parent if files.is_symlink() else None


def remove_folder(folder: Path) -> None:
    """A container's folder, and its files wherever they lie."""
    take_back(folder)
    _remove_tree(folder)


def note_process(template: Path, process: SandboxProcess) -> None:
    (template / PROCESS).write_text(json.dumps({"pid": process.pid, "started": process.pid_started}))


def remove_template(template: Path, sandbox: Sandbox) -> None:
    """Of an earlier worker, or one that has ended: whatever is left of it. Blocking."""
    with suppress(OSError, ValueError, KeyError):
        noted = json.loads((template / PROCESS).read_text())
        process = sandbox.adopt(template.name, str(template), noted["pid"], noted["started"])
        if process is not None:
            process.kill()
            process.close()
    remove_blocking(read_group(str(template)))
    _remove_tree(template)


def _remove_tree(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # a program may nest its folders as deep as it likes
        subprocess.run(["rm", "-rf", "--", folder], check=False, capture_output=True)
