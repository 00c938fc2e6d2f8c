"""Public names of `lorry.sdk.cls`, under the module name that programs know."""

from lorry.sdk.cls import Cls, Obj

__all__ = ["Cls", "Obj"]
