"""A model as a safetensors file, whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorry.errors import InvalidError
from lorry.storage.atomic import full_disk_named, make_folder, sync_folder, temporary_name
from lorry.weights import DTYPES

_TORCH = {f"torch.{kind}": name for name, (_, kind, _) in DTYPES.items()}
_NUMPY = {kind: name for name, (_, _, kind) in DTYPES.items() if kind is not None}


def export(model: Any, path: Path) -> Path:
    """`model`: a torch module, or tensors or NumPy arrays by name. Tied tensors are written under each of their
    names, so that whatever reads the file finds what it looks for."""
    tensors = model.state_dict() if hasattr(model, "state_dict") else model
    if not isinstance(tensors, Mapping) or not tensors:
        raise InvalidError(f"run.export needs a model, or tensors by name, and got a {type(model).__qualname__}")
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        kind = _TORCH.get(str(getattr(tensor, "dtype", ""))) or _NUMPY.get(str(getattr(tensor, "dtype", "")))
        if kind is None or not isinstance(name, str):
            raise InvalidError(f"{name!r} is a {type(tensor).__qualname__}, which a safetensors file cannot hold")
        shape = list(tensor.shape)
        size = DTYPES[kind][0]
        for length in shape:
            size *= length
        rows[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(rows, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    make_folder(path.parent)
    temporary = path.parent / f".{temporary_name()}"
    try:
        with full_disk_named(path), temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for tensor in tensors.values():
                _write(tensor, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path


def _write(tensor: Any, file: Any) -> None:
    if hasattr(tensor, "data_ptr"):
        tensor = tensor.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        if size:
            file.write((ctypes.c_char * size).from_address(tensor.data_ptr()))
    else:
        file.write(tensor.tobytes())
