"""Public names of `lorry.sdk.image`, under the module name that programs know."""

from lorry.sdk.image import Image

__all__ = ["Image"]
