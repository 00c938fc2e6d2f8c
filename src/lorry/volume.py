"""Public names of `lorry.sdk.volume`, under the module name that programs know."""

from lorry.sdk.volume import FileEntry, Volume

__all__ = ["FileEntry", "Volume"]
