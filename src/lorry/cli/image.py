"""`lorry image`: what has been built, and removing what nothing uses."""

from __future__ import annotations

import typer

from lorry.cli import asking, tables, units
from lorry.cli.asking import NoState
from lorry.cli.confirm import Yes, confirm

commands = typer.Typer(add_completion=False, no_args_is_help=True, help="Images that were built on this machine.")


@commands.command("list")
def list_(as_json: tables.AsJson = False) -> None:
    """Built images, the one used last first. Sizes count what images share for each of them."""
    try:
        rows = asking.look("image_list")["images"]
    except NoState:
        rows = []
    columns: list[tables.Column] = [
        ("IMAGE", lambda row: row["digest"][:12]),
        ("SIZE", lambda row: units.size(row["size"])),
        ("LAYERS", lambda row: str(len(row["layers"]) or "")),
        ("LAST USED", lambda row: units.ago(row["last_used"])),
        ("USED BY", lambda row: ", ".join(row["used_by"])),
        ("CONTENT", _content),
    ]
    tables.show(rows, columns, as_json=as_json, empty="No images yet; the first run of an app builds them.")


@commands.command()
def prune(yes: Yes = False, as_json: tables.AsJson = False) -> None:
    """Delete the images that no living app and no running container uses, and layers that no other image needs."""
    confirm("Delete the images that nothing uses?", yes)
    try:
        done = asking.look("image_prune")
    except NoState:
        done = {"removed": [], "freed": 0}
    if as_json:
        tables.show_json(done)
        return
    print(f"Deleted {len(done['removed'])} images, freed {units.size(done['freed'])}.")


def _content(row: tables.Row) -> str:
    if row["layers"]:
        return "; ".join(layer["title"].partition("(")[2].rstrip(")") or layer["title"] for layer in row["layers"])
    return " ".join(sorted(row["packages"])) or "Python alone"
