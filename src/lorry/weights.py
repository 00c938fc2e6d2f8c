"""`lorry.weights.load`: the tensors of safetensors files, mapped into memory instead of copied.

The file is mapped privately: pages are those of the kernel's page cache, shared by every process that loads the
same file, and a tensor that is written to gets pages of its own. The file never changes. Threads fault the pages in
beforehand, several requests to the disk at a time, so that the first use of the model does not wait for them one by
one. Standard library only: it works in any image that has torch (or NumPy), and outside containers.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lorry.errors import InvalidError

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""
MAX_DIMENSIONS = 64
"""As in torch."""
PIECE = 32 << 20
"""Bytes that one thread faults in at a time."""
MAX_THREADS = 8
"""More gain nothing: the disk, or the lock of the process's memory map, is busy then."""
POPULATE_READ, WILLNEED = 22, 3
"""madvise(2), Linux 5.14: fault pages in and report errors instead of sending SIGBUS."""

DTYPES: dict[str, tuple[int, str, str | None]] = {
    "F64": (8, "float64", "float64"),
    "F32": (4, "float32", "float32"),
    "F16": (2, "float16", "float16"),
    "BF16": (2, "bfloat16", None),
    "F8_E4M3": (1, "float8_e4m3fn", None),
    "F8_E5M2": (1, "float8_e5m2", None),
    "F8_E8M0": (1, "float8_e8m0fnu", None),
    "F8_E4M3FNUZ": (1, "float8_e4m3fnuz", None),
    "F8_E5M2FNUZ": (1, "float8_e5m2fnuz", None),
    "C64": (8, "complex64", "complex64"),
    "I64": (8, "int64", "int64"),
    "I32": (4, "int32", "int32"),
    "I16": (2, "int16", "int16"),
    "I8": (1, "int8", "int8"),
    "U64": (8, "uint64", "uint64"),
    "U32": (4, "uint32", "uint32"),
    "U16": (2, "uint16", "uint16"),
    "U8": (1, "uint8", "uint8"),
    "BOOL": (1, "bool", "bool"),
}
"""Name in the file → bytes, torch's name, NumPy's name (None: NumPy has no such type)."""


class Entry(NamedTuple):
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Of its first byte in the file."""
    size: int
    """Bytes."""


def load(
    path: str | os.PathLike[str], device: Any = "cpu", *, framework: Literal["torch", "numpy"] = "torch"
) -> dict[str, Any]:
    """All tensors of a model by name.

    `path` is a safetensors file, an index (`*.safetensors.index.json`), or a folder with one of either or with
    shards. `device` is torch's: "cpu" gives views of the mapped files, which cost no memory until they are written
    to; anything else a copy there. `framework="numpy"` gives arrays.

    Replace a file by renaming another over it; one that is overwritten or cut short while it is mapped changes the
    tensors, or ends the process with SIGBUS.

    InvalidError: not such a file, a damaged or hostile header, a type that the framework lacks.
    """
    if framework not in ("torch", "numpy"):
        raise InvalidError(f'framework={framework!r} must be "torch" or "numpy"')
    if framework == "numpy" and str(device) != "cpu":
        raise InvalidError(f'device={device!r}: NumPy arrays are on the CPU; use framework="torch"')
    make = _maker(framework)
    tensors: dict[str, Any] = {}
    owners: dict[str, Path] = {}
    for file, wanted in _files(Path(path)):
        mapped, header = _map(file)
        missing = (wanted or set()) - header.keys()
        if missing:
            raise InvalidError(f"{file} has no tensor {min(missing)!r}, which its index says it has")
        for name in sorted(header.keys() if wanted is None else wanted):
            if name in owners:
                raise InvalidError(
                    f"tensor {name!r} is in {owners[name].name} and in {file.name}: name the file that you mean, "
                    "or an index, instead of their folder"
                )
            owners[name] = file
            tensors[name] = make(file, name, mapped, header[name])
        _prefault(file, mapped)
        if str(device) != "cpu":
            for name in (name for name in owners if owners[name] == file):
                tensors[name] = tensors[name].to(device)
    return tensors


# --- files ------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[tuple[Path, set[str] | None]]:
    """Every file to read, and the tensors to take of it; None: all."""
    if path.is_dir():
        indexes = sorted(path.glob("*.safetensors.index.json"))
        if len(indexes) > 1:
            raise InvalidError(f"{path} has several indexes ({', '.join(i.name for i in indexes)}): name one of them")
        if indexes:
            return _indexed(indexes[0])
        found = sorted(path.glob("*.safetensors"))
        if not found:
            raise InvalidError(f"{path} has no *.safetensors file")
        return [(file, None) for file in found]
    if path.suffix == ".json":
        return _indexed(path)
    return [(path, None)]


def _indexed(index: Path) -> list[tuple[Path, set[str] | None]]:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        items = list(places.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InvalidError(f"{index} is no index of safetensors files: it needs an object weight_map") from e
    shards: dict[str, set[str]] = {}
    for name, file in items:
        if not isinstance(file, str) or file != os.path.basename(file) or not file.endswith(".safetensors"):
            raise InvalidError(
                f"{index}: tensor {name!r} is said to be in {file!r}, which is no *.safetensors beside it"
            )
        shards.setdefault(file, set()).add(name)
    return [(index.parent / file, names) for file, names in sorted(shards.items())]


def _map(path: Path) -> tuple[mmap.mmap, dict[str, Entry]]:
    """The file, copy on write, and what is where in it."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = read_header(file.read(8), file, size, str(path))
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mapped, header


# --- the header -------------------------------------------------------------------------------------------


def read_header(first: bytes, file: Any, size: int, path: str) -> dict[str, Entry]:
    """`first`: the file's first 8 bytes; `file` stands after them, and has `size` bytes in all. InvalidError unless
    every tensor lies where the format allows: in the file, without overlap, without gaps."""
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(MAX_HEADER, size - 8):
        raise InvalidError(f"{path} is no safetensors file: its header of {length} bytes does not fit ({size} bytes)")
    try:
        table = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise InvalidError(f"{path} is no safetensors file, or a damaged one: {e}") from e
    if not isinstance(table, dict):
        raise InvalidError(f"{path} is no safetensors file: its header is no JSON object")
    table.pop("__metadata__", None)
    data = 8 + length
    found = {name: _entry(name, row, data, path) for name, row in table.items()}
    end = data
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != end:
            what = "overlaps the one before it" if entry.start < end else "leaves a gap before it"
            raise InvalidError(f"{path}: tensor {name!r} {what} (at byte {entry.start - data}, expected {end - data})")
        end = entry.start + entry.size
    if end != size:
        raise InvalidError(
            f"{path} has {size - data} bytes of data and its header describes {end - data}: it is damaged"
        )
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _entry(name: str, row: Any, data: int, path: str) -> Entry:
    try:
        dtype, shape, (begin, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
    except (KeyError, TypeError, ValueError) as e:
        raise InvalidError(f"{path}: tensor {name!r} needs dtype, shape and data_offsets") from e
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, begin, end)) or len(shape) > MAX_DIMENSIONS:
        raise InvalidError(f"{path}: tensor {name!r} has an impossible shape or place: {str(row)[:200]}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InvalidError(f"{path}: tensor {name!r} has the type {str(dtype)[:40]}; known are {', '.join(DTYPES)}")
    if math.prod(shape) * DTYPES[dtype][0] != end - begin:
        raise InvalidError(
            f"{path}: tensor {name!r} of shape {list(shape)} and type {dtype} is not {end - begin} bytes"
        )
    return Entry(dtype, shape, data + begin, end - begin)


# --- tensors ----------------------------------------------------------------------------------------------


def _maker(framework: str) -> Any:
    try:
        library = importlib.import_module(framework)
    except ModuleNotFoundError as e:
        other = ', or use framework="numpy"' if framework == "torch" else ""
        raise ModuleNotFoundError(f"lorry.weights.load needs {framework}: add it to the image{other}") from e
    return partial(_torch_tensor if framework == "torch" else _numpy_array, library)


def _torch_tensor(torch: Any, path: Path, name: str, mapped: mmap.mmap, entry: Entry) -> Any:
    item, kind, _ = DTYPES[entry.dtype]
    dtype = getattr(torch, kind, None)
    if dtype is None:
        raise InvalidError(f"{path}: tensor {name!r} has the type {entry.dtype}, which torch {torch.__version__} lacks")
    if not entry.size:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.start % item:  # legal, though no writer does it; kernels for vectors may need aligned numbers
        return torch.frombuffer(bytearray(mapped[entry.start : entry.start + entry.size]), dtype=dtype).view(
            entry.shape
        )
    return torch.frombuffer(mapped, dtype=dtype, count=entry.size // item, offset=entry.start).view(entry.shape)


def _numpy_array(numpy: Any, path: Path, name: str, mapped: mmap.mmap, entry: Entry) -> Any:
    item, _, kind = DTYPES[entry.dtype]
    if kind is None:
        raise InvalidError(f'{path}: tensor {name!r} has the type {entry.dtype}, which NumPy lacks: framework="torch"')
    if not entry.size:
        return numpy.empty(entry.shape, dtype=kind)
    return numpy.frombuffer(mapped, dtype=kind, count=entry.size // item, offset=entry.start).reshape(entry.shape)


# --- pages ------------------------------------------------------------------------------------------------


def _prefault(path: Path, mapped: mmap.mmap) -> None:
    """Every page in memory, asked for by several threads. They have ended when this returns: a process with threads
    could not be forked."""
    size = len(mapped)
    pieces = [(start, min(PIECE, size - start)) for start in range(0, size, PIECE)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(MAX_THREADS, max(2, cores), len(pieces))
    bring = _populate(mapped)
    if bring is None:
        with path.open("rb") as file, ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda piece: _read(file.fileno(), *piece), pieces))
    elif threads < 2:
        bring(*pieces[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda piece: bring(*piece), pieces))


def _populate(mapped: mmap.mmap) -> Any:
    """madvise by hand: the mmap module's own holds the interpreter's lock while it waits for the disk. None where the
    kernel has no MADV_POPULATE_READ."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    view = ctypes.c_char.from_buffer(mapped)
    address = ctypes.addressof(view)

    def advise(start: int, length: int, advice: int) -> bool:
        return bool(libc.madvise(ctypes.c_void_p(address + start), ctypes.c_size_t(length), advice) == 0)

    def bring(start: int, length: int, _keep: Any = view) -> None:
        advise(start, length, WILLNEED)  # larger requests to the disk than page faults make
        advise(start, length, POPULATE_READ)  # a failure is no loss: the page is read when it is used

    return bring if advise(0, min(len(mapped), mmap.PAGESIZE), POPULATE_READ) else None


def _read(fd: int, start: int, length: int) -> None:
    """Into the page cache; the faults that follow are cheap."""
    scratch = bytearray(min(length, 1 << 20))
    end = start + length
    while start < end:
        count = os.preadv(fd, [memoryview(scratch)[: end - start]], start)
        if not count:
            return
        start += count
