"""Lorry: self-hosted serverless for AI work. Names and meanings are those of docs/reference.

Importing this module imports no asyncio, no web framework and nothing of the server.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lorry import data, exception, weights
    from lorry.sdk.app import App
    from lorry.sdk.call import FunctionCall
    from lorry.sdk.cls import Cls
    from lorry.sdk.context import current_function_call_id, current_input_id, is_local
    from lorry.sdk.decorators import (
        asgi_app,
        batched,
        clustered,
        concurrent,
        enter,
        exit,
        fastapi_endpoint,
        method,
        parameter,
        web_server,
        wsgi_app,
    )
    from lorry.sdk.display import enable_output
    from lorry.sdk.file_pattern_matcher import FilePatternMatcher
    from lorry.sdk.function import Function
    from lorry.sdk.image import Image
    from lorry.sdk.resumable import Resumable
    from lorry.sdk.retries import Retries
    from lorry.sdk.sandbox import Sandbox
    from lorry.sdk.secret import Secret
    from lorry.sdk.volume import Volume
    from lorry.train.places import run
    from lorry.train.run import Run

_HOMES = {
    "App": "app",
    "Cls": "cls",
    "FilePatternMatcher": "file_pattern_matcher",
    "Function": "function",
    "FunctionCall": "call",
    "Image": "image",
    "Resumable": "resumable",
    "Retries": "retries",
    "Sandbox": "sandbox",
    "Secret": "secret",
    "Volume": "volume",
    "asgi_app": "decorators",
    "batched": "decorators",
    "clustered": "decorators",
    "concurrent": "decorators",
    "current_function_call_id": "context",
    "current_input_id": "context",
    "enable_output": "display",
    "enter": "decorators",
    "exit": "decorators",
    "fastapi_endpoint": "decorators",
    "is_local": "context",
    "method": "decorators",
    "parameter": "decorators",
    "Run": "lorry.train.run",
    "run": "lorry.train.places",
    "web_server": "decorators",
    "wsgi_app": "decorators",
}
"""Public name → module, of lorry.sdk unless it is a full name. Loaded at first use, so that a container loads what its
code names."""


_NEEDS_LINUX = "Lorry runs on Linux in this version: on macOS in a Linux virtual machine, on Windows in WSL2"
_SUBMODULES = ("app", "cls", "data", "exception", "functions", "image", "secret", "volume", "weights")


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is not None:
        full = home.startswith("lorry.")
        if sys.platform != "linux" and not full:  # what is imported next names parts of the system that only Linux has
            raise importlib.import_module("lorry.errors").ResourceError(_NEEDS_LINUX)
        value = getattr(importlib.import_module(home if full else f"lorry.sdk.{home}"), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"lorry.{name}")
    else:
        raise AttributeError(f"module 'lorry' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_SUBMODULES])


__all__ = [
    "App",
    "Cls",
    "FilePatternMatcher",
    "Function",
    "FunctionCall",
    "Image",
    "Resumable",
    "Run",
    "Retries",
    "Sandbox",
    "Secret",
    "Volume",
    "asgi_app",
    "batched",
    "clustered",
    "concurrent",
    "current_function_call_id",
    "current_input_id",
    "data",
    "enable_output",
    "enter",
    "exception",
    "exit",
    "fastapi_endpoint",
    "is_local",
    "method",
    "parameter",
    "run",
    "web_server",
    "weights",
    "wsgi_app",
]
