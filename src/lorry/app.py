"""Public names of `lorry.sdk.app`, under the module name that programs know."""

from lorry.sdk.app import App

__all__ = ["App"]
