"""Safetensors files, mapped: what comes out, what is shared with the file, and headers that lie."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lorry
from lorry import weights
from lorry.errors import InvalidError


def write(path: Path, table: dict[str, Any], data: bytes) -> Path:
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def save(path: Path, **arrays: numpy.ndarray[Any, Any]) -> Path:
    kinds = {kind: name for name, (_, _, kind) in weights.DTYPES.items() if kind}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        table[name] = {"dtype": kinds[str(array.dtype)], "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    return write(path, table, data)


def load(path: Path) -> dict[str, Any]:
    return weights.load(path, framework="numpy")


def test_every_type_and_shape_comes_back(tmp_path: Path) -> None:
    arrays = {
        kind: numpy.arange(6).reshape(2, 3).astype(kind) for _, _, kind in weights.DTYPES.values() if kind is not None
    }
    arrays["empty"] = numpy.empty((0, 4), dtype="float32")
    arrays["scalar"] = numpy.array(3.5)
    found = lorry.weights.load(save(tmp_path / "model.safetensors", **arrays), framework="numpy")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert numpy.array_equal(found[name], array)


def test_tensors_are_views_of_the_file_and_writing_to_one_leaves_the_file_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", a=numpy.zeros(1 << 20, dtype="uint8"))
    before = path.read_bytes()
    first, second = load(path)["a"], load(path)["a"]
    assert not first.flags.owndata
    first[7] = 1
    assert (first[7], second[7]) == (1, 0)
    assert path.read_bytes() == before


def test_pages_are_in_memory_afterwards_and_no_thread_is_left(tmp_path: Path) -> None:
    size = 80 << 20  # three pieces
    path = save(tmp_path / "model.safetensors", a=numpy.ones(size, dtype="uint8"))
    threads = threading.active_count()
    found = load(path)
    assert threading.active_count() == threads
    inside, resident = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1])
    assert resident << 10 >= size
    assert int(found["a"][-1]) == 1


def test_without_populate_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_populate", lambda _mapped: None)
    array = numpy.arange(9 << 20, dtype="uint32")
    assert numpy.array_equal(load(save(tmp_path / "model.safetensors", a=array))["a"], array)


def test_a_folder_with_an_index_gives_what_the_index_names(tmp_path: Path) -> None:
    save(tmp_path / "model-1.safetensors", a=numpy.ones(2), unlisted=numpy.ones(2))
    save(tmp_path / "model-2.safetensors", b=numpy.zeros(3))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert load(tmp_path).keys() == load(index).keys() == {"a", "b"}
    index.write_text(json.dumps({"weight_map": {"c": "model-1.safetensors"}}))
    with pytest.raises(InvalidError, match=r"model-1.safetensors has no tensor 'c'"):
        load(tmp_path)


def test_a_folder_of_shards_without_an_index(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=numpy.ones(2))
    save(tmp_path / "2.safetensors", b=numpy.ones(2))
    assert load(tmp_path).keys() == {"a", "b"}
    save(tmp_path / "3.safetensors", a=numpy.ones(2))
    with pytest.raises(InvalidError, match=r"'a' is in 1.safetensors and in 3.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("place", ["../other.safetensors", "/etc/passwd", "model.bin", 7])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, place: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(InvalidError, match="beside it"):
        load(index)


def test_an_empty_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="has no \\*.safetensors"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "model.safetensors")


def row(shape: object, offsets: object, dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE: list[tuple[dict[str, Any], bytes, str]] = [
    ({"a": row([4], [0, 4]), "b": row([4], [2, 6])}, bytes(6), "overlaps"),
    ({"a": row([4], [0, 4]), "b": row([4], [0, 4])}, bytes(4), "overlaps"),
    ({"a": row([4], [2, 6])}, bytes(6), "gap"),
    ({"a": row([4], [0, 4])}, bytes(5), "describes 4"),
    ({"a": row([4], [0, 4])}, bytes(3), "3 bytes of data"),
    ({"a": row([4], [4, 0])}, bytes(4), "not -4 bytes"),
    ({"a": row([-4], [0, 4])}, bytes(4), "impossible"),
    ({"a": row([True], [0, 1])}, bytes(1), "impossible"),
    ({"a": row([1 << 62, 1 << 62], [0, 4])}, bytes(4), "is not 4 bytes"),
    ({"a": row([1] * 65, [0, 1])}, bytes(1), "impossible"),
    ({"a": row([4], [0, 4], "F7")}, bytes(4), "type F7; known are F64"),
    ({"a": row([4], [0, 4], ["U8"])}, bytes(4), "known are"),
    ({"a": row([4], [0, 4, 8])}, bytes(4), "needs dtype"),
    ({"a": row(None, [0, 4])}, bytes(4), "needs dtype"),
    ({"a": 5}, b"", "needs dtype"),
    ({"a": row([3], [0, 6], "F32")}, bytes(6), "is not 6 bytes"),
]


@pytest.mark.parametrize(("table", "data", "words"), HOSTILE)
def test_a_header_that_lies_is_refused_with_what_is_wrong(
    tmp_path: Path, table: dict[str, Any], data: bytes, words: str
) -> None:
    with pytest.raises(InvalidError, match=words) as caught:
        load(write(tmp_path / "model.safetensors", table, data))
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        struct.pack("<Q", 20000) + b"[" * 20000,
        struct.pack("<Q", 15) + b'{"a":1,"a":1}  ',
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_what_is_no_safetensors_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidError, match="no safetensors file"):
        load(path)


@given(st.data())
def test_no_damage_to_a_header_does_more_than_raise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save(path, a=numpy.arange(4, dtype="int16"), b=numpy.ones(3, dtype="float32"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        found = load(path)
    except InvalidError:
        return
    assert sum(array.nbytes for array in found.values()) == 20


def test_a_type_that_numpy_lacks_names_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": row([2], [0, 4], "BF16")}, bytes(4))
    with pytest.raises(InvalidError, match=r"'a' has the type BF16.*framework=\"torch\""):
        load(path)


def test_wrong_parameters_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="framework='jax'"):
        weights.load(tmp_path, framework="jax")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="device='cuda'"):
        weights.load(tmp_path, device="cuda", framework="numpy")


def test_without_torch_the_error_names_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r'add it to the image, or use framework="numpy"'):
        weights.load(save(tmp_path / "model.safetensors", a=numpy.ones(2)))


def test_importing_it_imports_no_torch_and_no_numpy() -> None:
    code = "import sys, lorry.weights; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed here")
def test_torch_tensors_of_small_types_and_of_odd_places(tmp_path: Path) -> None:
    import torch

    table = {
        "pad": row([1], [0, 1]),
        "odd": row([2], [1, 5], "BF16"),
        "fp8": row([3], [5, 8], "F8_E4M3"),
        "none": row([0, 2], [8, 8], "F32"),
        "even": row([], [8, 12], "F32"),
    }
    found = weights.load(
        write(tmp_path / "m.safetensors", table, b"\0\x80\x3f\0\x40\x38\x38\x38" + struct.pack("<f", 5))
    )
    assert found["odd"].tolist() == [1.0, 2.0]
    assert found["fp8"].dtype is torch.float8_e4m3fn
    assert found["fp8"].float().tolist() == [1.0] * 3
    assert (found["none"].shape, float(found["even"])) == ((0, 2), 5.0)
    found["even"].mul_(2)
    assert float(weights.load(tmp_path / "m.safetensors")["even"]) == 5.0
