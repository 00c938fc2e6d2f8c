"""One copy of the state, taken while training stands still, in memory that is kept from one checkpoint to the next."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import mmap
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lorry import faults
from lorry.errors import InvalidError
from lorry.train.manifest import BLOB, Chunk, Manifest
from lorry.train.store import CheckpointStore
from lorry.train.structure import PACKED, Flattener, Leaf

READERS = 4
"""Threads of a restore. Each verifies 2 GB/s, so four keep up with a fast disk."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the checkpoint to be, in the kept memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    content: int
    """Pieces of equal numbers have equal bytes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state that stays as it is, whatever training does meanwhile."""

    tree: Any
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(len(piece.data) for piece in self.pieces)


class Staging:
    """The kept memory. A snapshot lies in it until the next one is taken: fresh memory costs four times the copy."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._bytes: Any = None
        """The same memory as a torch tensor."""
        self._pinned = False
        self._contents: dict[tuple[str, int, int], int] = {}
        """What lies there: `Piece.content` by entry, place and size."""
        self._numbers = itertools.count()

    def take(self, state: dict[str, Any]) -> Snapshot:
        """Copy it. The caller has seen to it that nothing reads the snapshot before."""
        flat = Flattener()
        tree = {name: flat.tree(value, name) for name, value in state.items()}
        large = [leaf for leaf in flat.leaves if leaf.entry != PACKED]
        places: dict[str, int] = {}
        end = 0
        for leaf in large:
            places[leaf.entry] = end
            end += -(-leaf.size // mmap.PAGESIZE) * mmap.PAGESIZE  # a disk can take whole pages by itself
        places[PACKED] = end
        memory = self._reserve(end + flat.packed, flat.leaves)
        before, self._contents = self._contents, {}  # nothing is known of memory that is half copied
        contents = {}
        for leaf in flat.leaves:
            start = places[leaf.entry] + leaf.at
            place = (leaf.entry, start, leaf.size)
            if place in before and self._has(leaf, memory, start):
                contents[place] = before[place]
            elif leaf.size:
                self._copy(leaf, memory, start)
            if faults.armed:
                faults.point("train.staging")
        _wait_for_devices(flat.leaves)
        view = memoryview(memory)
        pieces = []
        for name, dtype, shape, size in [
            *((leaf.entry, leaf.dtype, leaf.shape, leaf.size) for leaf in large),
            (PACKED, BLOB, (flat.packed,), flat.packed),
        ]:
            start = places[name]
            content = contents.setdefault((name, start, size), next(self._numbers))
            pieces.append(Piece(name, dtype, shape, view[start : start + size], content))
        self._contents = contents
        return Snapshot(tree, tuple(pieces))

    def _has(self, leaf: Leaf, memory: mmap.mmap, start: int) -> bool:
        """Whether the memory has those bytes from the last time. To compare costs what copying does, ends at the
        first difference, and saves frozen weights the hashing, which costs ten times that."""
        if leaf.entry == PACKED or not _is_tensor(leaf) or leaf.source.is_cuda:
            return False
        torch = sys.modules["torch"]
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(leaf.source.element_size())
        if kind is None or leaf.source.is_conj() or leaf.source.is_neg():
            return False
        first = leaf.source.element_size()
        if ctypes.string_at(leaf.source.data_ptr(), first) != memory[start : start + first]:
            return False  # most of what training changes ends here, 30 times sooner
        kept = self._bytes[start : start + leaf.size].view(kind).view(leaf.shape)
        return bool(torch.equal(kept, leaf.source.view(kind)))  # as numbers, -0.0 would be 0.0

    def _reserve(self, size: int, leaves: list[Leaf]) -> mmap.mmap:
        if self._memory is None or len(self._memory) < size:
            self._unpin()
            self._contents = {}
            self._memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for advice in ("MADV_DONTFORK", "MADV_HUGEPAGE"):  # a fork would make us pay for each page once more
                if hasattr(mmap, advice):
                    self._memory.madvise(getattr(mmap, advice))
            torch = sys.modules.get("torch")
            self._bytes = None if torch is None else torch.frombuffer(self._memory, dtype=torch.uint8)
            if any(_on_cuda(leaf) for leaf in leaves):
                self._pin(torch)
        elif self._bytes is None and "torch" in sys.modules:
            torch = sys.modules["torch"]
            self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        return self._memory

    def _pin(self, torch: Any) -> None:
        """Let a GPU write here by itself; without it the copy is slower and just as right."""
        done = torch.cuda.cudart().cudaHostRegister(self._bytes.data_ptr(), self._bytes.numel(), 0)
        self._pinned = int(done) == 0

    def _unpin(self) -> None:
        if self._pinned:
            sys.modules["torch"].cuda.cudart().cudaHostUnregister(self._bytes.data_ptr())
            self._pinned = False

    def _copy(self, leaf: Leaf, memory: mmap.mmap, start: int) -> None:
        end = start + leaf.size
        if leaf.dtype == BLOB:
            memory[start:end] = leaf.source
        elif is_array(leaf.dtype):
            numpy = sys.modules["numpy"]
            count = leaf.size // leaf.source.itemsize
            numpy.frombuffer(memory, leaf.source.dtype, count, start).reshape(leaf.shape)[...] = leaf.source
        else:
            kept = self._bytes[start:end].view(leaf.source.dtype).view(leaf.shape)
            kept.copy_(leaf.source, non_blocking=self._pinned)


class Reader:
    """The leaves of a manifest, read from a store, each once: what was tied comes back tied."""

    def __init__(self, store: CheckpointStore, manifest: Manifest) -> None:
        """Reads all of it. CorruptCheckpointError names the first file that is damaged or missing."""
        self._store = store
        self._values: dict[Any, Any] = {}
        self._packed = memoryview(b"")
        places: list[tuple[Chunk, memoryview]] = []
        for entry in manifest.entries:
            if entry.name == PACKED:
                memory = self._packed = memoryview(bytearray(sum(chunk.size for chunk in entry.chunks)))
            else:
                self._values[entry.name], memory = _empty(entry.dtype, entry.shape)
            ends = itertools.accumulate(chunk.size for chunk in entry.chunks)
            places += [(chunk, memory[end - chunk.size : end]) for chunk, end in zip(entry.chunks, ends, strict=True)]
        with ThreadPoolExecutor(READERS) as readers:
            for _ in readers.map(self._fill, *zip(*places, strict=True)):
                pass

    def leaf(self, reference: dict[str, Any]) -> Any:
        """The value of one reference, on the CPU."""
        name = reference["$entry"]
        if name != PACKED:
            if type(self._values[name]) is bytearray:
                self._values[name] = bytes(self._values[name])
            return self._values[name]
        at, dtype, shape = reference["at"], reference["dtype"], tuple(reference["shape"])
        key = (at, dtype, shape)
        if key not in self._values:
            value, memory = _empty(dtype, shape)
            memory[:] = self._packed[at : at + len(memory)]
            self._values[key] = bytes(value) if dtype == BLOB else value
        return self._values[key]

    def _fill(self, chunk: Chunk, memory: memoryview) -> None:
        self._store.read(chunk, memory)
        if faults.armed:
            faults.point("train.restore")


def is_array(dtype: str) -> bool:
    """Whether it is NumPy's name of a dtype; those begin with the byte order."""
    return dtype[0] in "<>|="


def on_its_device(leaf: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Leaves where they were: for state that nobody's `load_state_dict` puts there."""
    placed: dict[int, Any] = {}

    def place(reference: dict[str, Any]) -> Any:
        value = leaf(reference)
        where = reference.get("on")
        if where is None or not _has_device(where):
            return value
        return placed.setdefault(id(value), value.to(where))

    return place


def _empty(dtype: str, shape: tuple[int, ...]) -> tuple[Any, memoryview]:
    """Memory for a value, as the value and as bytes."""
    if dtype == BLOB:
        value = bytearray(shape[0])
        return value, memoryview(value)
    if is_array(dtype):
        numpy: Any = importlib.import_module("numpy")
        array = numpy.empty(shape, dtype)
        return array, memoryview(array.reshape(-1).view("u1")) if array.nbytes else memoryview(bytearray())
    torch: Any = importlib.import_module("torch")
    kind = getattr(torch, dtype, None)
    if kind is None:
        raise InvalidError(f"The checkpoint has a tensor of type {dtype}, which torch {torch.__version__} lacks")
    tensor = torch.empty(shape, dtype=kind)
    size = tensor.numel() * tensor.element_size()
    memory = (
        memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
        if size
        else memoryview(bytearray())
    )
    return tensor, memory


def _is_tensor(leaf: Leaf) -> bool:
    return leaf.dtype != BLOB and not is_array(leaf.dtype)


def _on_cuda(leaf: Leaf) -> bool:
    return _is_tensor(leaf) and bool(leaf.source.is_cuda)


def _wait_for_devices(leaves: list[Leaf]) -> None:
    for device in {leaf.source.device for leaf in leaves if _on_cuda(leaf)}:
        sys.modules["torch"].cuda.synchronize(device)


def _has_device(where: str) -> bool:
    torch: Any = sys.modules["torch"]
    kind, _, number = where.partition(":")
    return kind == "cuda" and torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
