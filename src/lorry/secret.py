"""Public names of `lorry.sdk.secret`, under the module name that programs know."""

from lorry.sdk.secret import Secret

__all__ = ["Secret"]
