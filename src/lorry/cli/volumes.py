"""`lorry volume`: folders that outlive containers."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from lorry import errors
from lorry.cli import asking, tables, units
from lorry.cli.asking import NoState
from lorry.cli.confirm import Yes, confirm
from lorry.sdk.volume import Volume

commands = typer.Typer(add_completion=False, no_args_is_help=True, help="Volumes: folders that outlive containers.")

Name = Annotated[str, typer.Argument(metavar="NAME")]


@commands.command()
def create(name: Name) -> None:
    """Make an empty volume."""
    Volume.from_name(name)
    asking.act("volume_create", name=name, or_get=False)
    print(f'Created volume {name}. In a function: volumes={{"/data": lorry.Volume.from_name("{name}")}}')


@commands.command("list")
def list_(as_json: tables.AsJson = False) -> None:
    """All volumes that have a name."""
    try:
        rows = [row for row in asking.look("volume_list")["volumes"] if row["name"]]
    except NoState:
        rows = []
    columns: list[tables.Column] = [
        ("NAME", "name"),
        ("SIZE", lambda row: units.size(row["bytes"])),
        ("CREATED", lambda row: units.ago(row["created_at"])),
    ]
    tables.show(rows, columns, as_json=as_json, empty="No volumes; `lorry volume create NAME` makes one.")


@commands.command()
def ls(
    name: Name,
    path: Annotated[str, typer.Argument()] = "/",
    recursive: Annotated[bool, typer.Option("-r", "--recursive")] = False,
    as_json: tables.AsJson = False,
) -> None:
    """What lies in a folder of a volume."""
    rows = [dataclasses.asdict(entry) for entry in Volume.from_name(name).listdir(path, recursive=recursive)]
    columns: list[tables.Column] = [
        ("SIZE", lambda row: "" if row["type"] == "directory" else units.size(row["size"])),
        ("CHANGED", lambda row: units.moment(row["mtime"])),
        ("PATH", lambda row: row["path"] + "/" * (row["type"] == "directory")),
    ]
    tables.show(rows, columns, as_json=as_json, empty="Nothing there.")


@commands.command()
def put(
    name: Name,
    local: Annotated[Path, typer.Argument(help="A file or folder of this machine.")],
    remote: Annotated[str, typer.Argument(help="Where it goes; a path that ends with / is a folder.")] = "/",
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace files that exist.")] = False,
) -> None:
    """Copy a file or folder into a volume."""
    if not local.exists():
        raise errors.InvalidError(f"there is no {local} on this machine")
    volume = Volume.from_name(name).hydrate()
    try:
        with volume.batch_upload(force=force) as batch:
            if local.is_dir():
                target = str(PurePosixPath(remote) / local.name) if remote.endswith("/") else remote
                batch.put_directory(local, target)
            else:
                batch.put_file(local, remote)
    except errors.AlreadyExistsError as exists:
        raise errors.AlreadyExistsError(f"{str(exists).partition(';')[0]}; --force replaces it") from None
    total = sum(path.stat().st_size for path, _remote, _mode in batch.files)
    count = len(batch.files)
    print(f"Copied {count} {'file' if count == 1 else 'files'} ({units.size(total)}) into {name}.")


@commands.command()
def get(
    name: Name,
    remote: Annotated[str, typer.Argument(help="A file or folder of the volume.")],
    local: Annotated[str, typer.Argument(help="Where it goes; `-` is stdout.")] = ".",
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace files that exist.")] = False,
) -> None:
    """Copy a file or folder out of a volume."""
    volume = Volume.from_name(name).hydrate()
    if local == "-":
        for piece in volume.read_file(remote):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    target = Path(local)
    for inside, destination in _destinations(volume, remote, target):
        _fetch(volume, inside, destination, force)


def _destinations(volume: Volume, remote: str, target: Path) -> list[tuple[str, Path]]:
    """(path in the volume, path here) of every file to fetch."""
    name = PurePosixPath(remote).name
    try:
        entries = volume.listdir(remote, recursive=True)
    except errors.Error:
        entries = []  # a file, or nothing: reading it tells
    inside = [entry for entry in entries if entry.type == "file"]
    root = PurePosixPath("/", remote)
    if not entries or (len(inside) == 1 and PurePosixPath("/", inside[0].path) == root):
        return [(remote, target / name if target.is_dir() or str(target).endswith(os.sep) else target)]
    folder = target / name if target.is_dir() and name else target
    return [(entry.path, folder / PurePosixPath("/", entry.path).relative_to(root)) for entry in inside]


def _fetch(volume: Volume, inside: str, target: Path, force: bool) -> None:
    """Into a file beside it first: a broken transfer leaves no half file under the name."""
    if target.exists() and not force:
        raise errors.AlreadyExistsError(f"{target} exists; --force replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            count = volume.read_file_into_fileobj(inside, file)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{inside} -> {target} ({units.size(count)})", file=sys.stderr)


@commands.command()
def rm(
    name: Name,
    path: Annotated[str, typer.Argument()],
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="A folder and all in it.")] = False,
) -> None:
    """Delete a file or folder of a volume."""
    Volume.from_name(name).remove_file(path, recursive=recursive)
    print(f"Deleted {path} from {name}.")


@commands.command()
def delete(name: Name, yes: Yes = False) -> None:
    """Delete a volume and everything in it."""
    volume = Volume.from_name(name).hydrate()
    confirm(f"Delete volume {name} and everything in it?", yes)
    volume.delete_self()
    print(f"Deleted volume {name}.")
