"""Public names for functions and their calls, under the module name that programs know."""

from lorry.sdk.call import FunctionCall
from lorry.sdk.function import Function

__all__ = ["Function", "FunctionCall"]
