from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorry.errors import InvalidError
from lorry.storage.secrets import SecretBox

VALUES = {"HF_TOKEN": "hf_äöü", "EMPTY": ""}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "secrets.key"


def test_what_is_sealed_opens_after_a_restart(key_file: Path) -> None:
    sealed = SecretBox(key_file).seal("se-1", VALUES)
    assert SecretBox(key_file).open("se-1", sealed) == VALUES


def test_the_key_file_is_private_and_whole(key_file: Path) -> None:
    before = os.umask(0)
    try:
        SecretBox(key_file)
    finally:
        os.umask(before)
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert len(key_file.read_bytes()) == 32
    assert [path.name for path in key_file.parent.iterdir()] == ["secrets.key"]


def test_sealed_bytes_show_nothing_and_are_never_the_same(key_file: Path) -> None:
    box = SecretBox(key_file)
    one, two = box.seal("se-1", VALUES), box.seal("se-1", VALUES)
    assert one != two
    assert b"hf_" not in one
    assert b"HF_TOKEN" not in one
    assert key_file.read_bytes().hex() not in repr(box) + str(vars(type(box)))


def test_a_secret_opens_under_its_own_id_only(key_file: Path) -> None:
    box = SecretBox(key_file)
    with pytest.raises(InvalidError, match="se-2 cannot be opened"):
        box.open("se-2", box.seal("se-1", VALUES))


def test_any_changed_byte_is_noticed(key_file: Path) -> None:
    box = SecretBox(key_file)
    sealed = box.seal("se-1", VALUES)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(InvalidError):
            box.open("se-1", bytes(changed))
    for length in (0, 1, 5, 13, 20, len(sealed) - 1):
        with pytest.raises(InvalidError):
            box.open("se-1", sealed[:length])


def test_another_key_does_not_open_it_and_the_file_is_named(key_file: Path, tmp_path: Path) -> None:
    sealed = SecretBox(key_file).seal("se-1", VALUES)
    with pytest.raises(InvalidError, match=r"other\.key"):
        SecretBox(tmp_path / "other.key").open("se-1", sealed)


def test_the_first_of_two_makers_wins(key_file: Path) -> None:
    rival: list[SecretBox] = []

    def overtaken(size: int) -> bytes:
        rival.append(SecretBox(key_file))
        return b"k" * size

    box = SecretBox(key_file, overtaken)
    assert box.open("se-1", rival[0].seal("se-1", VALUES)) == VALUES


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(key_file: Path, mode: int) -> None:
    SecretBox(key_file)
    key_file.chmod(mode)
    with pytest.raises(InvalidError, match="chmod 600"):
        SecretBox(key_file)


def test_a_broken_key_file_is_named(key_file: Path) -> None:
    SecretBox(key_file)
    key_file.write_bytes(b"short")
    with pytest.raises(InvalidError, match="5 bytes"):
        SecretBox(key_file)
